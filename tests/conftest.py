"""What all tests share: one thread, a small network of every awkward kind, and a photograph."""

from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import tests.shape_checks  # noqa: F401 (before anything of the package is imported)
from inversefed import pipeline
from inversefed.zoo import pictures


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def brief_limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of an update looks at a window of larger pictures, but where a test asks for `whole_limit`."""
    if "whole_limit" not in request.fixturenames:
        monkeypatch.setattr(pipeline, "LIMIT_SECONDS", 0.3)


@pytest.fixture(scope="session")
def whole_limit() -> None:
    """For tests that look at what an audit says of the limit."""


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the shape checks of the test run off, to reach the library's own errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """The first two bundled photographs at 32x32, pixel space."""
    return torch.stack([pictures.photo(name, (3, 32, 32)) for name in pictures.photo_names()[:2]])


@pytest.fixture
def tiny() -> nn.Module:
    """A smooth convolutional network for 3x8x8 pictures and 4 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 4)).eval()
