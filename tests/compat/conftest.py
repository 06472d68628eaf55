"""Formula pictures with CIFAR-10's constants, as the figures of 2020 were made from, and a small CIFAR-10 on disk."""

import pickle

import numpy as np
import pytest
import torch

import inversefed


def formula(k):
    """Formula picture k, pixel space [3, 32, 32]."""
    r, c = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    waves = [
        np.sin((k + 1) * r / 7) * np.cos((k + 2) * c / 9),
        np.cos((k + 1) * (r + c) / 11),
        np.sin((k + 3) * (r - c) / 13),
    ]
    return torch.from_numpy(0.5 + 0.45 * np.stack(waves)).float()


@pytest.fixture(scope="session")
def dm():
    return torch.tensor(inversefed.consts.cifar10_mean)[:, None, None]


@pytest.fixture(scope="session")
def ds():
    return torch.tensor(inversefed.consts.cifar10_std)[:, None, None]


@pytest.fixture(scope="session")
def batch(dm, ds):
    """Make the first n formula pictures, normalized, and their labels."""

    def make(n=1):
        return torch.stack([(formula(k) - dm) / ds for k in range(n)]), torch.arange(n) % 10

    return make


@pytest.fixture(scope="session")
def lenet():
    """LeNetZhu of seed 0, in train mode, as it comes."""
    return inversefed.construct_model("LeNetZhu", seed=0)[0]


@pytest.fixture(scope="session")
def gradient(lenet, batch):
    """Make the gradient of the first n formula pictures."""

    def make(n=1):
        x, y = batch(n)
        loss = torch.nn.functional.cross_entropy(lenet(x), y)
        return [part.detach() for part in torch.autograd.grad(loss, list(lenet.parameters()))]

    return make


@pytest.fixture
def cifar_root(tmp_path):
    """A folder with CIFAR-10 in its own batch format: five batches of 4 to train on, 6 pictures to test on."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for index, name in enumerate(["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]):
        count = 4 if index else 6
        content = {
            b"batch_label": name.encode(),
            b"labels": [(3 * index + k) % 10 for k in range(count)],
            b"data": draw.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"filenames": [b"x.png"] * count,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder.parent
