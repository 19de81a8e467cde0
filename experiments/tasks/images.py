"""Image data sets through TensorFlow Datasets, without TensorFlow, as uint8 arrays in memory.

TFDS prepares them, with its checksums; the arrays are kept as one `.npz`, so that later
runs load in a tenth of a second and do not import TFDS at all.
"""

import contextlib
import gzip
import hashlib
import io
import os
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from experiments import files
from experiments.errors import BadInput
from experiments.training.data import Data

if TYPE_CHECKING:
    from tensorflow_datasets.image_classification.mnist import MNIST

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("JAXCLIP_CACHE") or ROOT / ".cache")
IN_REPOSITORY = {"mnist": Path(__file__).parents[1] / "mnist"}

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"

# The SHA-256 that TFDS publishes (`url_checksums/`). They are repeated here because importing TFDS
# takes longer than checking the files does.
CHECKSUMS: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion_mnist": {
        TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}


# Of the prepared arrays, by `files.fingerprint`.
PREPARED: Mapping[str, str] = {
    "mnist": "9c3039ac62b8f8b191529b0ff8188c0e1827e883666cfb50db204f23e2df7075",
    "fashion_mnist": "20abaee8e19d63ca22625cb5aff5fa542fc626f6709823d260ddb87c46cd3ba7",
}


class Images(NamedTuple):
    """Labeled images: `images` u8[n, 28, 28, 1] and `labels` u8[n]."""

    images: Any
    labels: Any


def load(
    dataset: str,
    folder: Path | None = None,
    cache: Path = CACHE,
    tell: Callable[[str], object] = print,
) -> Data:
    """Loads a data set, and prepares it first where that has not been done yet.

    Args:
        dataset: `"mnist"` or `"fashion_mnist"`.
        folder: where the four original files are. By default the ones that come with the
            repository, and a download where there are none.
        cache: where the prepared arrays are kept.
        tell: receives the message that there is a preparation to wait for.

    Returns:
        A `Data` of two `Images`, in the order that TFDS gives them.

    Raises:
        BadInput: a file is missing or is not the published one, or there is no network.
    """
    if folder is None and (default := IN_REPOSITORY.get(dataset)) and default.is_dir():
        folder = default
    if folder is not None:
        verify(dataset, folder)
    path = cache / f"{dataset}.npz"
    arrays = read_prepared(dataset, path, tell)
    if arrays is None:
        if folder is None:
            require_network(dataset)
        with files.open_folder(cache, "name another one by JAXCLIP_CACHE", wait=True):
            # Another process may have prepared them meanwhile.
            arrays = read_prepared(dataset, path) or prepare_and_keep(dataset, folder, cache, tell)
    return Data(
        train=Images(arrays["train_images"], arrays["train_labels"]),
        test=Images(arrays["test_images"], arrays["test_labels"]),
    )


def verify(dataset: str, folder: Path) -> None:
    """Raises `BadInput` unless `folder` holds the four published files of `dataset`."""
    for name, expected in CHECKSUMS[dataset].items():
        path = folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BadInput(
                f"{path} cannot be read ({error.strerror}): it has to be the {dataset} file with "
                f"SHA-256 {expected}; put it there, or name another folder with --mnist-dir"
            ) from error
        if found != expected:
            raise BadInput(
                f"{path} is not the {dataset} file: expected SHA-256 {expected}, found {found}; "
                f"replace it, or name another folder with --mnist-dir"
            )


def read_prepared(
    dataset: str, path: Path, tell: Callable[[str], object] = lambda line: None
) -> dict[str, np.ndarray] | None:
    """Returns the arrays kept at `path`, or None where they are missing or not the prepared ones.

    Args:
        dataset: the data set that they are of.
        path: an `.npz` file.
        tell: receives the reason why they are prepared again.
    """
    if not path.exists():
        return None
    try:
        arrays = files.read_arrays(path, "it is made anew")
        with files.read_errors(path, "it is made anew"):
            check_prepared(dataset, arrays)
    except BadInput as error:
        tell(str(error))
        return None
    return arrays


def check_prepared(dataset: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `ValueError` unless the arrays are those of the original files."""
    found = files.fingerprint(dict(arrays))
    if found != PREPARED[dataset]:
        raise ValueError(f"expected arrays of SHA-256 {PREPARED[dataset]}, found {found}")


def prepare_and_keep(
    dataset: str, folder: Path | None, cache: Path, tell: Callable[[str], object]
) -> dict[str, np.ndarray]:
    """Prepares a data set in a folder that this process has locked, and keeps its arrays."""
    files.remove_parts(cache)
    tell(f"Preparing {dataset} with TFDS, once: about half a minute.")
    arrays = prepare(dataset, folder, cache)
    try:
        check_prepared(dataset, arrays)
    except ValueError as error:
        raise BadInput(
            f"TFDS prepared another {dataset} than this version knows ({error}): install the "
            f"versions of requirements.lock"
        ) from error
    files.write_arrays(cache / f"{dataset}.npz", arrays)
    return arrays


def prepare(dataset: str, folder: Path | None, cache: Path) -> dict[str, np.ndarray]:
    """Has TFDS prepare the data set in a temporary folder below `cache`, and reads it back."""
    import PIL.Image
    import tensorflow_datasets as tfds

    class WithoutTensorFlow(stock_builder(dataset), skip_registration=True):
        """The stock builder, but for unpacking and encoding, which it does with `tf.io`."""

        name = dataset

        def _split_generators(self, dl_manager):
            only_download: Any = SimpleNamespace(download_and_extract=dl_manager.download)
            return super()._split_generators(only_download)

        def _generate_examples(self, num_examples, data_path, label_path):
            images = read_idx(data_path, header=16).reshape(num_examples, 28, 28)
            labels = read_idx(label_path, header=8)
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": PIL.Image.fromarray(image), "label": int(label)}

    tfds.disable_progress_bar()
    cache.mkdir(parents=True, exist_ok=True)
    # The name is that of a part, which is removed after a kill.
    with tempfile.TemporaryDirectory(dir=cache, suffix=f".{os.getpid()}.part") as scratch:
        builder = WithoutTensorFlow(data_dir=scratch, file_format="array_record")
        files = tfds.download.DownloadConfig(manual_dir=folder and os.fspath(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            try:
                builder.download_and_prepare(download_config=files)
            except Exception as error:  # those of TFDS have no class in common
                raise BadInput(
                    f"TFDS cannot prepare {dataset}: {error}; try again, or name a folder that "
                    f"holds {', '.join(CHECKSUMS[dataset])} with --mnist-dir"
                ) from error
        return {
            f"{split}_{field}": array
            for split in ("train", "test")
            for field, array in read_split(builder, split).items()
        }


def stock_builder(dataset: str) -> "type[MNIST]":
    """Returns the TFDS builder: its URL, checksums, features, version and order are used as is."""
    from tensorflow_datasets.image_classification.mnist import MNIST, FashionMNIST

    return {"mnist": MNIST, "fashion_mnist": FashionMNIST}[dataset]


def read_idx(path: os.PathLike, header: int) -> np.ndarray:
    """The bytes of a gzipped IDX file after its header."""
    return np.frombuffer(gzip.decompress(Path(path).read_bytes()), np.uint8, offset=header)


def read_split(builder: Any, split: str) -> dict[str, np.ndarray]:
    """A prepared split as arrays."""
    import PIL.Image
    import tensorflow_datasets as tfds

    # Decoding the PNG here is twice as fast as through the feature's own decoder.
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    examples = source.__getitems__(range(len(source)))
    images = [np.asarray(PIL.Image.open(io.BytesIO(example["image"]))) for example in examples]
    return {
        "images": np.stack(images)[..., np.newaxis],
        "labels": np.array([example["label"] for example in examples], np.uint8),
    }


def require_network(dataset: str) -> None:
    """Raises `BadInput` at once where TFDS would retry for minutes."""
    if urllib.request.getproxies():
        return
    host = urlsplit(stock_builder(dataset).URL).hostname
    try:
        socket.create_connection((host, 80), timeout=5).close()
    except OSError as error:
        raise BadInput(
            f"{dataset} has to be downloaded, and {host} cannot be reached ({error}): connect, or "
            f"name a folder that holds {', '.join(CHECKSUMS[dataset])} with --mnist-dir"
        ) from error
