"""Pictures that anybody may have, for the controls: what else looks like the private ones, and is none of them."""

import torch

from inversefed.errors import InversefedError
from inversefed.specs.sources import Sources
from inversefed.types import Batch
from inversefed.zoo import datasets
from inversefed.zoo.picture_sources import Shape

__all__ = ["stand_ins"]

_MOST = 64
"""As many others of a data set make a mean picture."""


def stand_ins(options: Sources, shape: Shape) -> Batch | None:
    """Other examples of the data set that is audited, or bundled photographs where pictures come as files.

    Args:
        options: as given; of a data set the examples after the private ones are taken, around its end.
        shape: of the network's input.

    Returns:
        At most 64 pictures with labels; nothing where there is none of this shape.
    """
    own = not options.images and options.update is None and options.after is None
    try:
        dataset = datasets.load(options.dataset if own else "photos", options.data_path, size=shape)
        private = range(options.index, options.index + options.num_images) if own else range(0)
        count = min(_MOST + len(private), len(dataset))
        places = [place for step in range(count) if (place := (private.stop + step) % len(dataset)) not in private]
        if not places:
            return None
        images, labels = dataset.batch(places[:_MOST])
    except InversefedError:  # no such pictures here, or too small ones: the audit goes on with fewer controls
        return None
    return Batch(images, labels.to(torch.long))
