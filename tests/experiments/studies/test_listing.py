from experiments.__main__ import main
from experiments.studies import catalog, listing


def test_every_study_is_listed_with_what_it_asks_and_where_it_was_trained(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(listing, "RESULTS", tmp_path / "results")
    done, begun, old = (
        tmp_path / name for name in ("runs/spikes-full", "runs/spikes-quick", "results/methods")
    )
    for folder in (done, begun, old):
        folder.mkdir(parents=True)
    (done / catalog.TRAININGS).write_text("stage\none\ntwo\n")
    (begun / catalog.CONFIG).write_text("{}")
    (old / catalog.PAGE).write_text("{}")
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    for name, asks in catalog.ASKS.items():
        assert f"{name} " in told and asks in told
    assert "102 trainings; in the full form 6,264, or more" in told
    assert "runs/spikes-full: 2 trainings" in told
    assert "runs/spikes-quick: not finished" in told
    assert "results/methods: of the older design" in told
