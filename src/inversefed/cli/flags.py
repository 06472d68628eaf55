"""What only the command line decides: device, threads, and what its flags grant the server."""

import torch
from torch import nn

from inversefed.cli import options as given
from inversefed.errors import ConfigError
from inversefed.fl.threat import ThreatModel
from inversefed.specs import registry
from inversefed.specs.durations import seconds_in
from inversefed.specs.load_setting import Setting, load

__all__ = ["granted", "pick_device", "read_rehearsals", "read_seconds", "read_setting", "set_threads"]

_SMALL = 100_000

_MOST_REHEARSALS = 64
"""As many public pictures as there are for controls."""


def read_setting(options: given.Setting) -> Setting:
    """Read pictures and network, on the device and with the threads that were asked for.

    Raises:
        ConfigError: an unknown name, or options that contradict each other.
        InputError: files that cannot be used.
    """
    if options.threads is not None and options.threads < 1:
        raise ConfigError("--threads must be at least 1")
    space = None if options.inputs is None else registry.build("inputs", options.inputs)
    setting = load(options, options.seed, options.mean, options.std, space, registry.build("loss", options.loss))
    setting.module.to(pick_device(options.device))
    set_threads(setting.module, options.threads)
    return setting


def granted(options: given.Setting) -> ThreatModel:
    """What the options let the server know."""
    return ThreatModel(
        labels="known" if options.known_labels else "unknown",
        client="unknown" if options.unknown_client else "known",
        order="known" if options.known_order else "unknown",
        defenses="known" if options.known_defenses else "unknown",
        buffers="sent" if options.sent_buffers else "network",
    )


def set_threads(module: nn.Module, threads: int | None) -> None:
    """As many threads as were asked for; by default all, but one for a small network: sharing its work costs more."""
    small = sum(weight.numel() for weight in module.parameters()) < _SMALL
    torch.set_num_threads((1 if small else torch.get_num_threads()) if threads is None else threads)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` prefers a GPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}; try cpu") from error
    return device


def read_seconds(text: str | None) -> float | None:
    """Read a length of time such as 30s, 5m or 1h.

    >>> read_seconds("1.5m")
    90.0
    """
    if text is None:
        return None
    seconds = seconds_in(text)
    if seconds is None:
        raise ConfigError(f"--time-budget is a length of time such as 30s, 5m or 1h, not {text!r}")
    return seconds


def read_rehearsals(text: str | None) -> tuple[int | None, float | None]:
    """Read a number of rehearsals, or a length of time for as many as there is time for.

    >>> read_rehearsals("8"), read_rehearsals("2m"), read_rehearsals(None)
    ((8, None), (64, 120.0), (None, None))
    """
    if text is None or text.strip().isdecimal():
        return None if text is None else int(text), None
    seconds = seconds_in(text)
    if seconds is None:
        raise ConfigError(f"--rehearse is a number such as 8, or a length of time such as 2m, not {text!r}")
    return _MOST_REHEARSALS, seconds
