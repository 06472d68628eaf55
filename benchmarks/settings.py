"""The settings that attacks are compared in: which network, how many pictures, which labels, what the client does.

Labels are those of the files. Where a setting asks for distinct ones, a picture whose class is taken gets the next free
class; where it asks for duplicates, every second picture gets its neighbor's: an untrained network knows no better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.pictures import CLASSES, Example
from inversefed.fl.clients import Client, FedAvg, FedSGD
from inversefed.types import Batch

__all__ = ["SETTINGS", "Setting"]

Labels = Literal["own", "distinct", "duplicate"]


@dataclass(frozen=True)
class Setting:
    """What an attack is faced with.

    Args:
        network: a name of `inversefed.zoo.networks`.
        iterations: of the paper's recipe; it is the reference, and a processor has no time for 4,800 on each of them.
        size: pictures in the update.
        labels: the files' own, or changed to be distinct or in pairs.
        client: who makes the update.
        train_mode: whether the network is in train mode.
        trained: whether its weights are those of a file.
    """

    network: str
    iterations: int
    size: int = 1
    labels: Labels = "own"
    client: Client = FedSGD()
    train_mode: bool = False
    trained: bool = False

    def batch(self, examples: Sequence[Example], number: int) -> Batch:
        """The batch of that number: consecutive pictures, starting again at the first."""
        taken = [examples[(number * self.size + index) % len(examples)] for index in range(self.size)]
        labels = arranged([example.label for example in taken], self.labels)
        return Batch(torch.stack([example.image for example in taken]), torch.tensor(labels))


_FOUR_STEPS = FedAvg(local_steps=4, lr=1e-2, batch_size=1)

SETTINGS: Mapping[str, Setting] = {
    "lenet-single": Setting("LeNetZhu", 4800),
    "lenet-batch4-distinct": Setting("LeNetZhu", 1200, 4, "distinct"),
    "lenet-batch4-duplicate": Setting("LeNetZhu", 1200, 4, "duplicate"),
    "lenet-batch8-distinct": Setting("LeNetZhu", 1200, 8, "distinct"),
    "lenet-batch8-duplicate": Setting("LeNetZhu", 1200, 8, "duplicate"),
    "lenet-fedavg4": Setting("LeNetZhu", 1200, 4, client=_FOUR_STEPS),
    "allconv-single": Setting("AllConv", 600),
    "allconv-batch4-distinct": Setting("AllConv", 600, 4, "distinct"),
    "allconv-batch4-duplicate": Setting("AllConv", 600, 4, "duplicate"),
    "allconv-batch8-distinct": Setting("AllConv", 600, 8, "distinct"),
    "allconv-batch8-duplicate": Setting("AllConv", 600, 8, "duplicate"),
    "allconv-fedavg4": Setting("AllConv", 600, 4, client=_FOUR_STEPS),
    "allconv-train-mode": Setting("AllConv", 600, 4, train_mode=True),
    "convnet16-single": Setting("ConvNet16", 600),
    "trained-single": Setting("AllConv", 600, trained=True),
    "trained-batch4": Setting("AllConv", 600, 4, trained=True),
}
"""By name. Four local steps take one picture each."""


def arranged(labels: Sequence[int], how: Labels) -> list[int]:
    """Labels of a batch, changed as the setting wants them.

    >>> arranged([3, 8, 8, 0], "distinct"), arranged([3, 8, 8, 0], "duplicate")
    ([3, 8, 9, 0], [3, 3, 8, 8])
    """
    if how == "duplicate":
        return [labels[index - index % 2] for index in range(len(labels))]
    if how == "own":
        return list(labels)
    found: list[int] = []
    for label in labels:
        free = (each % CLASSES for each in range(label, label + CLASSES))
        found.append(next(each for each in free if each not in found))
    return found
