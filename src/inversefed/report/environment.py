"""What a result was computed with: enough to run it again."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

__all__ = ["describe"]


def describe() -> Mapping[str, str]:
    """Versions, machine and threads, as text.

    >>> sorted(describe())
    ['cores', 'inversefed', 'machine', 'python', 'system', 'threads', 'torch']
    """
    return {
        "inversefed": version("inversefed"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
