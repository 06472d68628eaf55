"""Data sets are found by name, read lazily and come in the shape that is asked for."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from inversefed.errors import ConfigError, InputError
from inversefed.zoo import constants, datasets
from inversefed.zoo.pictures import photo


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_digits(folder, prefix="t10k", n=5, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(n) % 10)):
        content = idx(array)
        name = f"{prefix}-{kind}-ubyte"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return torch.from_numpy(pixels)


def write_pictures(folder, names, color=(0, 0, 0), side=40):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (side, side), color).save(folder / name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("MNIST", "MNIST/raw"),
        ("mnist_gray", "."),
        ("FashionMNIST", "FashionMNIST/raw"),
        ("Fashion-MNIST", "fashion-mnist"),
    ],
)
def test_digits_come_back_pixel_for_pixel(tmp_path, name, place, zipped):
    test, train = write_digits(tmp_path / place, "t10k", 5, zipped), write_digits(tmp_path / place, "train", 12, zipped)
    for split, pixels in (("test", test), ("train", train)):
        dataset = datasets.load(name, tmp_path, split)
        images, labels = dataset.batch(range(len(dataset)))
        assert torch.equal((images[:, 0] * 255).round().byte(), pixels)
        assert labels.tolist() == [index % 10 for index in range(len(pixels))]
        assert (dataset.shape, dataset.num_classes, len(dataset.mean)) == ((1, 28, 28), 10, 1)


def test_mnist_and_fashion_mnist_have_their_own_statistics(tmp_path):
    write_digits(tmp_path)
    assert datasets.load("MNIST", tmp_path).mean == constants.mnist_mean
    assert datasets.load("FashionMNIST", tmp_path).mean == constants.fashion_mnist_mean


def test_digits_grow_by_a_black_border_and_take_color(tmp_path):
    pixels = write_digits(tmp_path)
    gray, color = datasets.load("MNIST", tmp_path, size=32), datasets.load("MNIST", tmp_path, size=(3, 32, 32))
    picture = gray[1][0]
    assert torch.equal((picture[0, 2:-2, 2:-2] * 255).round().byte(), pixels[1])
    assert picture.count_nonzero() == picture[:, 2:-2, 2:-2].count_nonzero()
    assert torch.equal(color[1][0], picture.expand(3, 32, 32))
    assert color.mean == constants.mnist_mean * 3
    assert datasets.load("MNIST", tmp_path, size=14)[0][0].shape == (1, 14, 14)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08\x03", idx(np.zeros((5, 28, 28)))[:-1], idx(np.zeros((5, 28, 28))) + b"x", idx(np.zeros(5))],
)
def test_a_damaged_idx_file_is_refused(tmp_path, content):
    write_digits(tmp_path, zipped=False)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is not an idx file"):
        datasets.load("MNIST", tmp_path)


def test_a_damaged_gzip_and_foreign_sizes_are_refused(tmp_path):
    write_digits(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        datasets.load("MNIST", tmp_path)
    file.write_bytes(gzip.compress(idx(np.zeros((5, 8, 8)))))
    with pytest.raises(InputError, match="as many 28x28 pictures as labels"):
        datasets.load("MNIST", tmp_path)


def test_missing_digits_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no t10k-images-idx3-ubyte nor .*\.gz in .*MNIST/raw.*allow the download"):
        datasets.load("MNIST", tmp_path)


def test_a_download_of_digits_that_fails_is_an_input_error(tmp_path, monkeypatch):
    def offline(self, root, download):
        raise RuntimeError("no route")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__init__", offline)
    with pytest.raises(InputError, match=r"FashionMNIST could not be fetched into .*no route"):
        datasets.load("FashionMNIST", tmp_path, download=True)


def test_imagenet_has_a_class_for_each_folder(tmp_path):
    write_pictures(tmp_path / "val/n02", ["a.JPEG", "b.JPEG"], (255, 0, 0), side=300)
    write_pictures(tmp_path / "val/n01", ["c.JPEG"], side=300)
    dataset = datasets.load("imagenet", tmp_path)
    assert (dataset.classes, len(dataset), dataset.shape) == (("n01", "n02"), 3, (3, 224, 224))
    picture, label = dataset[2]
    assert (picture.shape, label) == ((3, 224, 224), 1)
    assert picture[0].min() > 0.95
    with pytest.raises(InputError, match=r"no ImageNet in .*/train"):
        datasets.load("ImageNet", tmp_path, "train")


def test_a_folder_of_folders_is_read_lazily(tmp_path):
    write_pictures(tmp_path / "cats", ["1.png"], (255, 255, 255))
    write_pictures(tmp_path / "dogs", ["1.png"])
    (tmp_path / "dogs/2.png").write_text("broken")
    dataset = datasets.load("folder", tmp_path, size=32)
    assert (dataset.classes, len(dataset)) == (("cats", "dogs"), 3)
    assert (dataset[0][0].min() > 0.999, dataset[1][0].max() == 0) == (True, True)
    with pytest.raises(InputError, match=r"2.png cannot be read"):
        dataset[2]


def test_a_flat_folder_takes_the_labels_from_the_names(tmp_path):
    write_pictures(tmp_path, ["x_00_3.png", "x_01_12.jpg", "y.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    dataset = datasets.load("folder", tmp_path, size=(1, 20, 10))
    assert [label for _, label in dataset] == [3, 12, 0]
    assert (dataset.num_classes, dataset.shape, len(dataset.std)) == (13, (1, 20, 10), 1)
    assert dataset[0][0].shape == (1, 20, 10)


def test_a_folder_with_parts_gives_the_part(tmp_path):
    write_pictures(tmp_path / "train/a", ["1.png", "2.png"])
    write_pictures(tmp_path / "val/a", ["1.png"])
    assert len(datasets.load("folder", tmp_path, "train")) == 2
    assert len(datasets.load("folder", tmp_path, "test")) == 1


def test_pictures_of_different_sizes_need_a_size_to_be_batched(tmp_path):
    write_pictures(tmp_path, ["a.png"], side=40)
    write_pictures(tmp_path, ["b.png"], side=50)
    dataset = datasets.load("folder", tmp_path)
    assert dataset.shape is None
    assert [picture.shape[1] for picture, _ in dataset] == [40, 50]
    with pytest.raises(InputError, match="give `size`"):
        dataset.batch([0, 1])
    assert dataset.fitted((3, 40, 40)).batch([0, 1])[0].shape == (2, 3, 40, 40)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match="no pictures in"):
        datasets.load("folder", tmp_path)
    with pytest.raises(InputError, match="is not there"):
        datasets.load("folder", tmp_path / "none")


@pytest.mark.parametrize(("name", "channels"), [("BSDS-SR", 1), ("bsds_dn", 1), ("BSDS-RGB", 3)])
def test_bsds_is_pictures_without_classes(tmp_path, name, channels):
    write_pictures(tmp_path / "BSDS500/data/images/train", ["8049.jpg"], side=300)
    dataset = datasets.load(name, tmp_path, "train")
    assert (dataset[0][0].shape, dataset[0][1]) == ((channels, 256, 256), 0)
    with pytest.raises(InputError, match="no BSDS500 pictures: looked for"):
        datasets.load(name, tmp_path, "test")


def test_photos_are_labeled_by_their_place():
    dataset = datasets.load("photos", size=32)
    assert [label for _, label in dataset] == list(range(8))
    assert (dataset.num_classes, dataset.classes[0]) == (10, "chelsea")
    assert torch.equal(dataset[0][0], photo("chelsea", (3, 32, 32)))


def test_an_index_outside_is_refused():
    dataset = datasets.load("photos", size=32)
    assert torch.equal(dataset[-1][0], dataset[7][0])
    with pytest.raises(IndexError):
        dataset[8]
    with pytest.raises(InputError, match="examples 0 to 7; there is no 9"):
        dataset.batch([1, 9])
    with pytest.raises(InputError, match="at least one"):
        dataset.batch([])


def test_small_pictures_in_memory_are_not_enlarged():
    source = datasets.Arrays(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    dataset = datasets.Dataset("tiny", ("a", "b"), (0.5,) * 3, (0.2,) * 3, (3, 8, 8), source)
    with pytest.raises(InputError, match="8x8 pixels and 16x16 are asked for"):
        dataset.fitted((3, 16, 16))
    assert dataset.fitted((1, 4, 4)).batch([0, 1])[0].shape == (2, 1, 4, 4)
    with pytest.raises(InputError, match="1 or 3 channels"):
        dataset.fitted((2, 4, 4))


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(ConfigError, match="unknown data set 'CIFAR11'; did you mean CIFAR10"):
        datasets.load("CIFAR11")
    with pytest.raises(ConfigError, match="a split is 'train' or 'test', not 'val'"):
        datasets.load("photos", split="val")


def test_there_is_a_reader_for_every_name(tmp_path):
    for name in set(datasets.names()) - {"photos"}:
        with pytest.raises(InputError, match=str(tmp_path)):
            datasets.load(name, tmp_path / "empty")
