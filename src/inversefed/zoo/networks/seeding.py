"""Weights from a seed, and nothing else changed: the caller's random state is put back afterwards.

In 2020 one seed s set torch to s + 1, numpy to s + 4 and `random` to s + 6; the same three are set here, so that a
seed gives the weights it gave then. Networks are built on the CPU, so no GPU's random state is touched.
"""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from inversefed.errors import ConfigError

__all__ = ["draw_seed", "seeded"]

LARGEST = 2**32 - 10
"""Above this, numpy refuses the seed plus 4."""


def draw_seed() -> int:
    """Return a fresh seed from the operating system; no generator's state changes.

    >>> 0 <= draw_seed() < 2**32
    True
    """
    return secrets.randbelow(LARGEST)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (CPU), numpy and `random` as 2020 did, inside the block only.

    Args:
        seed: from 0 to 2**32 - 10.

    Raises:
        ConfigError: the seed is out of range.
    """
    if not 0 <= seed <= LARGEST:
        raise ConfigError(f"a seed lies between 0 and {LARGEST}, not {seed}")
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the global state, to put back
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed + 1)
            np.random.seed(seed + 4)  # noqa: NPY002
            random.seed(seed + 6)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
