import math

import numpy as np
import pytest

from experiments.errors import BadInput
from experiments.studies import records
from experiments.studies.arms import Training

ONE = Training(
    stage="round 1",
    setting="mnist",
    arm='a "name", with\nall',
    point={"learning_rate": 0.1, "limit": math.inf},
    seed=1000,
    validation=records.single(np.float32(0.9)),
    test=0.25,
    loss=math.inf,
    clip_rate=1 / 3,
    failed=True,
    seconds=0.125,
    measures={"recovery": 7.0},
)
OTHER = ONE._replace(point={"clip.z": 2.5}, failed=False, measures={}, seed=-3)


def test_a_record_reads_back_as_it_was(tmp_path):
    records.write(tmp_path, [ONE, OTHER])
    assert records.read(tmp_path) == [ONE, OTHER]
    header = (tmp_path / "trainings.csv").read_text().splitlines()[0].split(",")
    assert header[-4:] == ["point.learning_rate", "point.limit", "point.clip.z", "measure.recovery"]


@pytest.mark.parametrize("number", [0.9, 1 / 3, 1e-40, 3.4e38, -0.0])
def test_a_float32_keeps_its_bits(number):
    kept = np.float32(records.single(np.float32(number)))
    assert kept.tobytes() == np.float32(number).tobytes()
    assert len(str(records.single(np.float32(number)))) < 15


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.25,", "quarter,", "line 2: could not convert"),
        ("0.25,", "", "line 2: zip"),
        (",1,0.125", ",yes,0.125", "failed is 'yes', not 0 or 1"),
        ("stage,", "", "it has no column stage"),
        ("-3", "2.5", "line 4: invalid literal"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, old, new, told):
    records.write(tmp_path, [ONE._replace(arm="a"), ONE._replace(arm="b"), OTHER])
    path = tmp_path / "trainings.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BadInput, match=told):
        records.read(tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        records.read(tmp_path)
