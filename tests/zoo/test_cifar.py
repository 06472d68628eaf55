"""CIFAR in its own format: what is written is read, and a pickle that wants more than arrays runs nothing."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from inversefed.errors import InputError, UnsafeFileError
from inversefed.zoo import datasets

TRAIN = [f"data_batch_{index}" for index in range(1, 6)]


def batch(n, seed, key=b"labels"):
    rows = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {
        b"batch_label": b"a batch",
        key: [(i + seed) % 10 for i in range(n)],
        b"data": rows,
        b"filenames": [b"x"] * n,
    }


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for seed, name in enumerate(["test_batch", *TRAIN]):
        (folder / name).write_bytes(pickle.dumps(batch(6, seed), protocol=2))
    return tmp_path


def written_by_python_2(content):
    """Spell a batch as Python 2 did: numpy 1's module names, and byte strings (protocol 2 has only `str` for them)."""

    def text(value):
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    rows, labels = content[b"data"], content[b"labels"]
    integer = [b"K" + bytes([label]) for label in labels]
    n = b"K" + bytes([len(rows)])
    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    state = b"(K\x01" + n + b"M\x00\x0c\x86" + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + b"](" + b"".join(integer) + b"e" + b"u."


def test_the_test_batch_comes_back_pixel_for_pixel(root):
    dataset, written = datasets.load("CIFAR10", root), batch(6, 0)
    assert (len(dataset), dataset.num_classes, dataset.shape) == (6, 10, (3, 32, 32))
    for index, (picture, label) in enumerate(dataset):
        assert torch.equal((picture * 255).round().byte().flatten(), torch.from_numpy(written[b"data"][index]))
        assert label == written[b"labels"][index]
    assert dataset.classes[dataset[3][1]] == "cat"


def test_the_training_batches_come_in_order(root):
    images, labels = datasets.load("cifar-10", root, split="train").batch(range(30))
    written = [batch(6, seed) for seed in range(1, 6)]
    assert labels.tolist() == [label for part in written for label in part[b"labels"]]
    rows = np.concatenate([part[b"data"] for part in written])
    assert np.array_equal((images * 255).round().byte().flatten(1).numpy(), rows)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_pickle_protocol_is_read(root, protocol):
    written = batch(4, 9)
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(written, protocol=protocol))
    images, labels = datasets.load("CIFAR10", root).batch(range(4))
    assert np.array_equal((images * 255).round().byte().flatten(1).numpy(), written[b"data"])
    assert labels.tolist() == written[b"labels"]


def test_a_file_as_python_2_wrote_it_is_read(root):
    written = batch(3, 4)
    content = written_by_python_2(written)
    assert np.array_equal(pickle.loads(content, encoding="bytes")[b"data"], written[b"data"])  # the spelling is right
    (root / "cifar-10-batches-py/test_batch").write_bytes(content)
    images, labels = datasets.load("CIFAR10", root).batch(range(3))
    assert np.array_equal((images * 255).round().byte().flatten(1).numpy(), written[b"data"])
    assert labels.tolist() == written[b"labels"]


def test_the_folder_itself_can_be_the_path(root):
    assert len(datasets.load("cifar10", root / "cifar-10-batches-py")) == 6


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", [b"data", b"labels", b"extra"])
def test_a_hostile_pickle_is_refused_and_nothing_runs(root, tmp_path, where):
    marker = tmp_path / "ran"
    content = pickle.dumps({**batch(6, 0), where: Hostile(marker)}, protocol=2)
    (root / "cifar-10-batches-py/test_batch").write_bytes(content)
    with pytest.raises(UnsafeFileError, match=r"test_batch: .*\.system, .*Nothing was run"):
        datasets.load("CIFAR10", root)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # so the file was hostile indeed


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.core.multiarray.scalar"])
def test_other_names_are_refused(root, name):
    module, attribute = name.rsplit(".", 1)
    (root / "cifar-10-batches-py/test_batch").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UnsafeFileError, match=f"asks for {name}"):
        datasets.load("CIFAR10", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((6, 3072), object)}, "rows of 3072 bytes"),
        ({b"data": np.zeros((6, 3072), np.float32)}, "rows of 3072 bytes"),
        ({b"data": np.zeros((6, 3071), np.uint8)}, "rows of 3072 bytes"),
        ({b"data": np.asfortranarray(np.zeros((6, 3072), np.uint8))}, "C order"),
        ({b"data": [1, 2]}, "is not a CIFAR batch"),
        ({b"labels": [0, 1, 2, 3, 4, 10]}, "each from 0 to 9"),
        ({b"labels": [0, 1]}, "6 pictures need as many labels"),
    ],
)
def test_a_file_that_is_no_batch_is_refused(root, change, message):
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({**batch(6, 0), **change}, protocol=2))
    with pytest.raises(InputError, match=message):
        datasets.load("CIFAR10", root)


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(batch(6, 0), protocol=2)[:500], pickle.dumps(3)]
)
def test_a_damaged_file_is_refused(root, content):
    (root / "cifar-10-batches-py/test_batch").write_bytes(content)
    with pytest.raises(InputError, match=r"test_batch.*(damaged|expected a dictionary)"):
        datasets.load("CIFAR10", root)


def test_missing_files_say_which_and_where(root):
    (root / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(InputError, match=r"no data_batch_3 in .*cifar-10-batches-py nor in .*allow the download"):
        datasets.load("CIFAR10", root, split="train")
    with pytest.raises(InputError, match=r"no test_batch in"):
        datasets.load("CIFAR10", root / "elsewhere")


def test_cifar100_has_its_fine_labels_and_names(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "test").write_bytes(pickle.dumps(batch(6, 3, b"fine_labels"), protocol=2))
    plain = datasets.load("CIFAR100", tmp_path)
    assert (plain.num_classes, plain.classes[7], plain[0][1]) == (100, "7", 3)
    fine = [f"kind{index}".encode() for index in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": fine}, protocol=2))
    assert datasets.load("CIFAR_100", tmp_path).classes[99] == "kind99"


def test_the_download_is_asked_for_and_checked(root, monkeypatch, tmp_path):
    calls = []

    def fetch(url, target, filename, md5):
        calls.append((filename, md5))
        shutil.copytree(root / "cifar-10-batches-py", f"{target}/cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    new = tmp_path / "new"
    assert len(datasets.load("CIFAR10", new, download=True)) == 6
    assert len(datasets.load("CIFAR10", new, download=True)) == 6
    assert calls == [("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")]


def test_a_failed_download_is_an_input_error(monkeypatch, tmp_path):
    def fetch(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    with pytest.raises(InputError, match=r"could not be fetched from https://.*no route"):
        datasets.load("CIFAR10", tmp_path, download=True)
