import gzip
import shutil
import socket

import numpy as np
import pytest

from experiments import files
from experiments.errors import BadInput
from experiments.tasks import images as data

REPOSITORY = data.IN_REPOSITORY["mnist"]


@pytest.fixture
def originals(tmp_path):
    folder = tmp_path / "originals"
    shutil.copytree(REPOSITORY, folder)
    return folder


@pytest.fixture
def arrays(tiny):
    return {
        f"{split}_{field}": getattr(getattr(tiny, split), field)
        for split in ("train", "test")
        for field in ("images", "labels")
    }


@pytest.fixture
def prepared(monkeypatch, arrays):
    """Puts something quick in the place of TFDS, and counts how often it is asked."""
    calls = []

    def prepare(dataset, folder, cache):
        calls.append((dataset, folder))
        cache.mkdir(parents=True, exist_ok=True)
        return arrays

    monkeypatch.setattr(data, "prepare", prepare)
    monkeypatch.setitem(data.PREPARED, "mnist", files.fingerprint(arrays))
    return calls


def test_the_files_of_the_repository_are_the_published_ones():
    data.verify("mnist", REPOSITORY)
    sums = [line.split() for line in (REPOSITORY / "SHA256SUMS").read_text().splitlines()]
    assert {name: checksum for checksum, name in sums} == data.CHECKSUMS["mnist"]
    assert "Yann LeCun and Corinna Cortes" in (REPOSITORY / "NOTICE").read_text()


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_the_checksums_are_those_of_tfds(dataset):
    builder = data.stock_builder(dataset)
    published = {
        url.removeprefix(builder.URL): info.checksum for url, info in builder.url_infos.items()
    }
    assert published == data.CHECKSUMS[dataset]


@pytest.mark.parametrize("name", data.CHECKSUMS["mnist"])
def test_a_corrupted_file_is_named_with_both_checksums(originals, name):
    path = originals / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput) as told:
        data.verify("mnist", originals)
    message = str(told.value)
    assert str(path) in message
    assert f"expected SHA-256 {data.CHECKSUMS['mnist'][name]}" in message
    found = message.split("found ")[1].split(";")[0]
    assert len(found) == 64
    assert found != data.CHECKSUMS["mnist"][name]


def test_a_missing_file_is_named(originals):
    (originals / data.TEST_LABELS).unlink()
    with pytest.raises(BadInput, match=f"{data.TEST_LABELS} cannot be read .No such file"):
        data.verify("mnist", originals)


def test_the_files_are_verified_even_when_the_arrays_are_kept(originals, prepared, tmp_path):
    data.load("mnist", cache=tmp_path, tell=list)
    (originals / data.TRAIN_LABELS).write_bytes(b"")
    with pytest.raises(BadInput, match=data.TRAIN_LABELS):
        data.load("mnist", originals, cache=tmp_path)


def test_what_is_prepared_once_is_kept(prepared, tiny, tmp_path):
    told = []
    for _ in range(2):
        loaded = data.load("mnist", cache=tmp_path / "new" / "cache", tell=told.append)
        np.testing.assert_array_equal(loaded.train.images, tiny.train.images)
        np.testing.assert_array_equal(loaded.test.labels, tiny.test.labels)
    assert prepared == [("mnist", REPOSITORY)]
    assert len(told) == 1
    assert "once" in told[0]


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda _: b"", lambda _: b"x"])
def test_a_damaged_cache_is_prepared_anew(prepared, tmp_path, damage):
    data.load("mnist", cache=tmp_path, tell=list)
    kept = tmp_path / "mnist.npz"
    kept.write_bytes(damage(kept.read_bytes()))
    data.load("mnist", cache=tmp_path, tell=list)
    assert len(prepared) == 2


def changed(name, change):
    return lambda arrays: {**arrays, name: change(arrays[name])}


@pytest.mark.parametrize(
    "damage",
    [
        changed("train_labels", lambda labels: labels[::-1]),
        changed("train_images", np.zeros_like),
        changed("train_images", lambda images: images[:100]),
        changed("train_images", lambda images: images.astype(np.int16)),
        changed("test_images", lambda images: images.reshape(-1, 784)),
        lambda arrays: {name: arrays[name] for name in arrays if name != "test_labels"},
        lambda arrays: {**arrays, "more": arrays["test_labels"]},
        lambda arrays: {},
    ],
)
def test_arrays_that_are_not_the_prepared_ones_are_prepared_anew(
    prepared, arrays, tiny, tmp_path, damage
):
    told = []
    files.write_arrays(tmp_path / "mnist.npz", damage(arrays))
    loaded = data.load("mnist", cache=tmp_path, tell=told.append)
    assert len(prepared) == 1
    np.testing.assert_array_equal(loaded.train.labels, tiny.train.labels)
    assert "mnist.npz is damaged (expected arrays of SHA-256" in told[0]
    data.load("mnist", cache=tmp_path)
    assert len(prepared) == 1


def test_tfds_that_prepares_other_arrays_is_not_believed(prepared, monkeypatch, tmp_path):
    monkeypatch.setitem(data.PREPARED, "mnist", "0" * 64)
    with pytest.raises(BadInput, match=r"TFDS prepared another mnist .* requirements.lock"):
        data.load("mnist", cache=tmp_path, tell=list)
    assert not (tmp_path / "mnist.npz").exists()


def test_parts_of_a_killed_preparation_are_removed_and_nothing_else(prepared, tmp_path):
    (tmp_path / "mnist.npz.123.part").write_bytes(b"half")
    (tmp_path / "x.124.part").mkdir()
    (tmp_path / "film.part").write_text("kept")
    data.load("mnist", cache=tmp_path, tell=list)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "film.part", "mnist.npz"}


def test_without_files_and_network_it_is_told_at_once(monkeypatch, tmp_path):
    def refuse(address, timeout):
        assert timeout <= 5
        raise socket.gaierror("no such host")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(BadInput, match=r"cannot be reached .no such host.*--mnist-dir") as told:
        data.load("fashion_mnist", cache=tmp_path)
    for name in data.CHECKSUMS["fashion_mnist"]:
        assert name in str(told.value)


def test_a_proxy_counts_as_a_network(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    monkeypatch.setattr(socket, "create_connection", None)
    data.require_network("fashion_mnist")


@pytest.mark.slow
def test_tfds_gives_the_original_images_with_their_labels(mnist):
    for split, images, labels in [
        (mnist.train, data.TRAIN_IMAGES, data.TRAIN_LABELS),
        (mnist.test, data.TEST_IMAGES, data.TEST_LABELS),
    ]:
        pixels = gzip.decompress((REPOSITORY / images).read_bytes())[16:]
        answers = gzip.decompress((REPOSITORY / labels).read_bytes())[8:]
        original = [
            pixels[784 * i : 784 * (i + 1)] + answers[i : i + 1] for i in range(len(answers))
        ]
        given = [
            image.tobytes() + bytes([label])
            for image, label in zip(split.images, split.labels, strict=True)
        ]
        assert sorted(given) == sorted(original)
