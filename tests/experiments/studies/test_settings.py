from experiments.studies.settings import SETTINGS


def test_settings_are_known_by_their_names():
    assert all(name == setting.name for name, setting in SETTINGS.items())
    assert len(set(SETTINGS.values())) == len(SETTINGS)
