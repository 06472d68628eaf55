"""Pictures that anybody may have, for the controls: what else looks like the private ones, and is none of them."""

import torch

from inversefed.errors import InversefedError
from inversefed.inputs import pictured
from inversefed.specs.load_setting import Setting
from inversefed.specs.sources import Sources
from inversefed.types import Batch
from inversefed.zoo import datasets

__all__ = ["stand_ins"]

_MOST = 64
"""As many others of a data set make a mean picture."""


def stand_ins(options: Sources, setting: Setting) -> Batch | None:
    """Other examples of the data set or table that is audited, or bundled photographs where pictures come as files.

    Args:
        options: as given; of a data set the examples after the private ones are taken, around its end.
        setting: what was read of them.

    Returns:
        At most 64 examples with labels; nothing where there is none of this shape.
    """
    if setting.others is not None or not pictured(setting.space):
        return setting.others
    shape = (setting.images.shape[1], setting.images.shape[2], setting.images.shape[3])
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
