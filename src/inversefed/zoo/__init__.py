"""Networks, data sets and training: everything that an audit can take from the shelf.

torchvision and the bundled photographs are used in this room only. The modules are imported when they are first named.
"""

import importlib
from types import ModuleType

__all__ = ["constants", "datasets", "networks", "pictures", "training"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
