"""Weights on disk: safetensors, which hold numbers and nothing to run, with the settings as JSON beside them."""

import copy
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inversefed.errors import ConfigError, InputError, UnsafeFileError, UpdateMismatchError, shown

__all__ = ["load_weights", "save_checkpoint", "with_weights"]


def save_checkpoint(path: str | os.PathLike[str], module: nn.Module, settings: Mapping[str, Any]) -> Path:
    """Write a network's weights and buffers, and how they came to be.

    Args:
        path: a file that ends in `.safetensors`, or a folder, in which `weights.safetensors` is written; the settings
            go beside it, under the same name with `.json`.
        module: the network; tensors that it shares are written once under each name.
        settings: anything that JSON can hold.

    Returns:
        The file with the weights.

    Raises:
        ConfigError: the settings do not fit into JSON.
    """
    target = Path(path).expanduser()
    file = target if target.suffix == ".safetensors" else target / "weights.safetensors"
    try:
        text = json.dumps(dict(settings), indent=2, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the settings of a checkpoint must fit into JSON: {error}") from error
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")  # so that an interrupted run leaves no half file under the final name
    save_file(tensors, partial)
    partial.replace(file)
    file.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return file


def load_weights(module: nn.Module, file: str | os.PathLike[str]) -> nn.Module:
    """Return a copy of `module` with the weights of a file; `module` is not changed.

    Args:
        module: the network that the weights are for.
        file: `.safetensors`, or a state dict in `.pt` or `.pth`, of which only tensors are loaded. Names that
            DataParallel put `module.` before are accepted.

    Raises:
        InputError: there is no such file, it is damaged, or it is of another kind.
        UnsafeFileError: the file holds more than tensors.
        UpdateMismatchError: names or shapes differ; the message says the first three.
    """
    source = Path(file).expanduser()
    if not source.is_file():
        raise InputError(f"expected a file of weights, but {source} does not exist")
    return with_weights(module, _without_prefix(_read(source)), source)


def with_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]) -> nn.Module:
    """Return a copy of `module` with these weights, whoever read them; `module` is not changed.

    Args:
        module: the network that the weights are for.
        tensors: weights and buffers by name; of tensors that the network shares, one name will do.
        source: what messages call them.

    Raises:
        UpdateMismatchError: names or shapes differ; the message says the first three.
    """
    _require_same(Path(source), tensors, module.state_dict(), _shared(module))
    loaded = copy.deepcopy(module)
    loaded.load_state_dict(tensors, strict=False)
    return loaded


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{file} is not a sound safetensors file: {error}") from error
    if file.suffix in (".pt", ".pth"):
        return _read_torch(file)
    raise InputError(f"weights come as .safetensors, .pt or .pth; {file.name} is none of them")


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"{file} holds more than tensors, or is damaged, and was not loaded. "
            f"Save `module.state_dict()` of a network you trust as safetensors ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a broken archive fails in its own ways
        raise InputError(f"{file} cannot be read as weights: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{file}: expected a state dict, tensors by name; save `module.state_dict()`")
    return dict(content)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = bool(tensors) and all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()} if wrapped else tensors


def _shared(module: nn.Module) -> list[set[str]]:
    """Return the groups of names that stand for one tensor: a file need hold only one of each."""
    groups: dict[int, set[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), set()).add(name)
    return [group for group in groups.values() if len(group) > 1]


def _require_same(
    file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], shared: list[set[str]]
) -> None:
    given = set(tensors)
    present = given.union(*(group for group in shared if group & given))
    wrong = [f"{name} is missing" for name in expected if name not in present]
    wrong += [f"{shown(name)} is not in the network" for name in tensors if name not in expected]
    wrong += _other_shapes(tensors, expected)
    if wrong:
        raise UpdateMismatchError(
            f"{file} does not fit the network: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            + ". Build the network with the name, classes and channels that it was trained with"
        )


def _other_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterable[str]:
    for name, tensor in tensors.items():
        if name in expected and tensor.shape != expected[name].shape:
            yield f"{name} is {tuple(tensor.shape)}, the network's is {tuple(expected[name].shape)}"
