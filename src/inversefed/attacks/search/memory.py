"""Memory of one evaluation of loss and gradient, known before it runs.

    step_bytes = peak over time of the bytes of all tensors that are alive

The loss is run on ghosts: tensors with a shape, a number format and a device, but no numbers (`torch`'s meta tensors
within a subclass). Autograd records them as it does any tensor, so they are born and die as in the real step, and
only that is counted. No arithmetic is done, whatever module, client, objective and priors the loss is made of.
"""

import os
import platform
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.threat import Observation
from inversefed.types import Scalar

__all__ = ["available_bytes", "chunk", "live_bytes", "measured_live_bytes", "recomputes", "step_bytes"]

Loss = Callable[[Mapping[str, Tensor]], Scalar]

_GLIBC_HEAP = 1.45
"""Resident bytes over live bytes at the peak of a step under glibc's allocator with its own settings: the middle of
1.15 to 1.82, measured on ConvNet and ResNet20-4 with one and eight images and up to fifty local steps, one thread.
Blocks of up to 32 MB come from a heap with holes in it."""

_MAPPED = 1.05
"""The same where each tensor is mapped on its own (`MALLOC_MMAP_THRESHOLD_=65536` in the environment): 1.03 to 1.07."""

_UNKNOWN_SYSTEM = 4 * 2**30


def step_bytes(loss: Loss, variables: Mapping[str, Tensor]) -> int | None:
    """Predict by how much memory use rises while a loss and its gradient are computed.

    On CPUs this is resident memory, with an allowance for what the allocator leaves unused between tensors; on other
    devices it is that of the tensors. Scratch memory inside a kernel and loaded libraries are not counted.

    Args:
        loss: scalar loss of the variables, such as `Problem.loss`.
        variables: where it is evaluated; only shapes, formats and devices count.

    Returns:
        Bytes beyond those that weights and variables hold already; `None` as for `live_bytes`.

    >>> image = torch.zeros(1, 3, 256, 256)
    >>> used = step_bytes(lambda at: at["images"].exp().sum(), {"images": image})
    >>> image.nbytes < used < 4 * image.nbytes
    True
    """
    live = live_bytes(loss, variables)
    device = next(iter(variables.values())).device
    return None if live is None else int(live * (_heap_factor() if device.type == "cpu" else 1.0))


def live_bytes(loss: Loss, variables: Mapping[str, Tensor]) -> int | None:
    """Predict the peak of live tensor memory while a loss and its gradient are computed, in bytes.

    Returns:
        `None` where shapes alone do not say what would run: the loss reads a number out of a tensor (`if x.sum() > 0`),
        writes into a tensor of its own, or uses an operation for which torch has no shape rule.
    """
    meter = _Meter()
    ghosts = {name: _Ghost(value.detach().to("meta"), value.device, meter) for name, value in variables.items()}
    before = meter.live
    try:
        _differentiate(loss, {name: ghost.requires_grad_() for name, ghost in ghosts.items()})
    except (RuntimeError, TypeError, ValueError, UnsupportedNetworkError):  # NotImplementedError is a RuntimeError
        return None
    return meter.peak - before


def measured_live_bytes(loss: Loss, variables: Mapping[str, Tensor]) -> int:
    """Run the step once and count the peak of live tensor memory, in bytes: what `live_bytes` predicts."""
    meter = _Meter()
    leaves = {name: value.detach().requires_grad_() for name, value in variables.items()}
    with _Watch(meter):
        _differentiate(loss, leaves)
    return meter.peak


def available_bytes(device: torch.device) -> int:
    """Memory that is free now on a device, within the limits of the process's control group; in bytes.

    Where the system does not say, 4 GiB are assumed.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return min(_system_bytes(), *_group_bytes())


def recomputes(observation: Observation) -> bool:
    """Whether a client runs some of its local steps again in the backward pass, for memory's sake."""
    steps = observation.steps
    return steps is not None and steps.recomputed > 0


def chunk(step_bytes: int, available: int, wanted: int) -> int:
    """How many steps of that size fit together into the memory available; at least 1, at most `wanted`.

    >>> chunk(100, 1000, 32), chunk(100, 1000, 4), chunk(100, 50, 4)
    (10, 4, 1)
    """
    return max(1, min(wanted, available // max(1, step_bytes)))


class _Meter:
    """Counts the bytes of storages that are alive, each from its first sight to its end."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._seen:
            return

        def gone(_: object) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class _Ghost(Tensor):
    """A tensor without numbers that says it is on a device."""

    body: Tensor
    meter: _Meter
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type["_Ghost"], body: Tensor, device: torch.device, meter: _Meter) -> "_Ghost":
        meter.add(body)
        ghost: _Ghost = Tensor._make_wrapper_subclass(
            cls,
            body.shape,
            strides=body.stride(),
            storage_offset=body.storage_offset(),
            dtype=body.dtype,
            device=device,
        )
        ghost.body, ghost.meter = body, meter
        return ghost

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"_Ghost{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        ghost = next(value for value in given if isinstance(value, _Ghost))
        bare = [value.body if isinstance(value, _Ghost) else _meta(value) for value in given]
        taken = iter(bare)
        body_args, body_kwargs = tree_map(lambda v: next(taken) if isinstance(v, Tensor) else v, (args, kwargs or {}))
        device = body_kwargs.get("device") or ghost.device
        if "device" in body_kwargs:
            body_kwargs["device"] = torch.device("meta")
        owners = {id(value): owner for value, owner in zip(bare, given, strict=True)}

        def clothe(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            owner = owners.get(id(value))
            if owner is not None and not isinstance(owner, _Ghost):
                raise NotImplementedError(f"{func} writes what is not known into a real tensor")
            return _Ghost(value, device, ghost.meter) if owner is None else owner

        return tree_map(clothe, func(*body_args, **body_kwargs))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the results of real operations to a meter."""

    def __init__(self, meter: _Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self.meter.add(value, counts=False)
        results = func(*args, **(kwargs or {}))
        for value in tree_iter(results):
            if isinstance(value, Tensor):
                self.meter.add(value)
        return results


def _meta(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _differentiate(loss: Loss, leaves: Mapping[str, Tensor]) -> None:
    with torch.enable_grad():
        torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)


def _heap_factor() -> float:
    default = platform.libc_ver()[0] == "glibc" and not os.environ.get("MALLOC_MMAP_THRESHOLD_")
    return _GLIBC_HEAP if default else _MAPPED


def _system_bytes() -> int:
    """Memory that new work can have, as the kernel estimates it."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (OSError, ValueError, AttributeError):
        return _UNKNOWN_SYSTEM


def _group_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each control group above this process, of version 2 or 1, leaves of its limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    new = [root / path.lstrip("/") for _, kind, path in lines if kind == ""]
    old = [root / "memory" / path.lstrip("/") for _, kind, path in lines if kind == "memory"]
    places = [(each, "max", "current") for path in new for each in _up_to(root, path)]
    places += [(each, "limit_in_bytes", "usage_in_bytes") for path in old for each in _up_to(root, path)]
    return [left for place, limit, used in places if (left := _left(place, limit, used)) is not None]


def _up_to(root: Path, path: Path) -> list[Path]:
    return [each for each in (path, *path.parents) if each.is_relative_to(root)]


def _left(place: Path, limit: str, used: str) -> int | None:
    try:
        # Cached files count as used but are given back under pressure.
        stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
        taken = int((place / f"memory.{used}").read_text()) - int(stat.get("inactive_file", 0))
        return max(0, int((place / f"memory.{limit}").read_text()) - taken)
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
