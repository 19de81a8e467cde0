import resource
import threading

import numpy as np
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
        with pytest.raises(BadInput, match=r"file cannot be written \(File too large\): finished"):
            files.write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_with_any_byte_changed_are_the_same_or_told(tmp_path):
    path = tmp_path / "arrays.npz"
    arrays = {"loss": np.arange(12.0).reshape(3, 4), "score": np.float32([0.5, np.nan])}
    files.write_arrays(path, arrays)
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (0, 7):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                found = files.read_arrays(path, "delete it")
            except BadInput as error:
                assert str(error).startswith(f"{path} is damaged (")
                assert "\n" not in str(error)
            else:
                # What is not an array, such as a date, is changed; `check_arrays` sees names.
                for name in arrays.keys() & found.keys():
                    np.testing.assert_array_equal(found[name], arrays[name])
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(BadInput, match=r"arrays.npz is damaged"):
            files.read_arrays(path, "delete it")


def test_arrays_of_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "evil.npz", a=np.array([{}], object))
    with pytest.raises(BadInput, match="no arrays: Object arrays cannot be loaded"):
        files.read_arrays(tmp_path / "evil.npz", "delete it")


@pytest.mark.parametrize("read", ["json", "lines", "arrays"])
def test_a_folder_or_nothing_in_the_place_of_a_file_is_told(tmp_path, read):
    readers = {
        "json": lambda path: files.read_json(path, int, "remove it"),
        "lines": lambda path: files.read_lines(path, int, "remove it"),
        "arrays": lambda path: files.read_arrays(path, "remove it"),
    }
    with pytest.raises(BadInput, match=r"cannot be read .Is a directory.: remove it"):
        readers[read](tmp_path)
    with pytest.raises(BadInput, match=r"cannot be read .No such file or directory.: remove it"):
        readers[read](tmp_path / "nothing")


def test_another_process_is_waited_for_where_that_is_asked_for(tmp_path):
    with files.lock(tmp_path):
        with pytest.raises(BadInput, match="another process"), files.lock(tmp_path):
            pass
        thread = threading.Thread(target=lambda: files.lock(tmp_path, wait=True).__enter__())
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
