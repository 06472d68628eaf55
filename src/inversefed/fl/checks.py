"""Refuse what the world half of an audit cannot use: examples, pieces and threat models, before any work."""

from torch import Tensor

from inversefed.errors import ConfigError, InputError
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.inputs import Images, InputSpace
from inversefed.types import Batch

__all__ = ["check_inputs", "check_pieces", "check_public", "check_threat", "check_truth"]


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


def check_inputs(images: Tensor, space: InputSpace | None = None) -> InputSpace:
    """Refuse anything but a batch of examples of a space, pictures where none is named, and return the space.

    Raises:
        InputError: wrong shape or type, no example, NaN, or values outside the range.
    """
    if space is None:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            came = isinstance(images, Tensor)
            what = f"shape {tuple(images.shape)} of {images.dtype}" if came else type(images).__name__
            raise InputError(
                f"images are a floating-point tensor [n, c, h, w] in [0, 1]; got {what}. Rows, series and tokens need "
                "a word on what they are: inputs=inversefed.inputs.Columns(..), Series(..) or Tokens(..)"
            )
        space = Images(tuple(images.shape[1:]))
    space.check(images)
    return space


def check_public(space: InputSpace, inputs: Tensor, name: str) -> None:
    """Refuse examples beside the private ones that are not of their space.

    Args:
        space: that of the private examples.
        inputs: what came.
        name: of the argument that they came as.

    Raises:
        InputError: as the space raises.
    """
    try:
        space.check(inputs)
    except InputError as error:
        raise InputError(f"{name} must be of the network's inputs: {error}") from error


def check_truth(observation: Observation, truth: Batch | None) -> None:
    """Refuse truths that are not those of the observation.

    Raises:
        InputError: another number of pictures, or another shape.
    """
    if truth is None:
        return
    observation.network.space.check(truth.images)
    if tuple(truth.images.shape) != observation.batch_shape:
        raise InputError(
            f"the truth must be all pictures behind the update, {observation.batch_shape}; "
            f"got {tuple(truth.images.shape)}"
        )
