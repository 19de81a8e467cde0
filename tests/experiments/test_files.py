import resource

import pytest

from experiments import files
from experiments.errors import BadInput


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    files.write_text(path, "new\n")
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def fail(file):
        file.write(b"half of the n")
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        files.write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(BadInput, match=r"file cannot be written \(File too large\): what is"):
            files.write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
