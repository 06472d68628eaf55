"""Refuse what the world half of an audit cannot use: pictures, pieces and threat models, before any work."""

from torch import Tensor

from inversefed.errors import ConfigError, InputError
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.types import Batch

__all__ = ["check_images", "check_pieces", "check_threat", "check_truth"]


def check_threat(threat: object, seed: object) -> None:
    """Refuse what is no threat model or no seed.

    Raises:
        ConfigError: either is of another kind.
    """
    if not isinstance(threat, ThreatModel) or type(seed) is not int or not 0 <= seed < 2**62:
        raise ConfigError(f"threat must be a ThreatModel and seed an integer from 0; got {threat!r} and {seed!r}")


def check_pieces(**pieces: object) -> None:
    """Refuse names, classes and functions that were not called where values are expected.

    Raises:
        ConfigError: a piece that cannot be used as it is.
    """
    defenses = pieces.pop("defenses", ())
    if not isinstance(defenses, tuple | list):
        raise ConfigError(f"defenses must be a tuple of values such as (defenses.Clip(1.0),); got {defenses!r}")
    for name, piece in [*pieces.items(), *(("defenses", defense) for defense in defenses)]:
        if not callable(piece) or isinstance(piece, type):
            raise ConfigError(f"{name} must be a value such as recipes.geiping() or FedSGD(), called; got {piece!r}")


def check_images(images: Tensor) -> tuple[int, int, int]:
    """Refuse anything but a batch of pictures in pixel space, and return the shape of one.

    Raises:
        InputError: wrong rank or type, no picture, NaN, or pixels outside [0, 1].
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        what = f"shape {tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"only images are audited for now: a floating-point tensor [n, c, h, w] in [0, 1] is expected, got {what}"
        )
    if images.shape[0] == 0:
        raise InputError("an audit needs at least one image, got none")
    low, high = images.detach().aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise InputError(
            f"pixels must lie in [0, 1] (pixel space, not normalized; give mean= and std= instead); got "
            f"{float(low):.3g} to {float(high):.3g}"
        )
    channels, height, width = images.shape[1:]
    return channels, height, width


def check_truth(observation: Observation, truth: Batch | None) -> None:
    """Refuse truths that are not those of the observation.

    Raises:
        InputError: another number of pictures, or another shape.
    """
    if truth is None:
        return
    check_images(truth.images)
    if tuple(truth.images.shape) != observation.batch_shape:
        raise InputError(
            f"the truth must be all pictures behind the update, {observation.batch_shape}; "
            f"got {tuple(truth.images.shape)}"
        )
