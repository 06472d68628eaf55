"""What is measured: a network, and the paper's recipe at its stated budget, which is the reference.

An easy network gets the budget of the paper's Table 1. The wide ones get the few iterations that a processor has time
for. Where the paper does not say which weight total variation should have, two are run and the better counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from inversefed.errors import ConfigError, unknown_name

__all__ = ["CASES", "Case", "chosen"]

Each = TypeVar("Each")


@dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    Args:
        network: a name of `inversefed.zoo.networks`.
        iterations: of the reference.
        total_variations: weights of its prior; the one of highest mean PSNR counts.
    """

    network: str
    iterations: int
    total_variations: tuple[float, ...] = (1e-4, 1e-2)


CASES: Mapping[str, Case] = {
    "lenet": Case("LeNetZhu", 4800, (1e-2,)),
    "allconv": Case("AllConv", 1500),
    "mcmahan": Case("McMahan", 1500),
    "convnet16": Case("ConvNet16", 1500),
    "resnet20": Case("ResNet20", 1500),
    "convnet": Case("ConvNet", 300),
    "resnet20-4": Case("ResNet20-4", 300),
}


def chosen(text: str, known: Mapping[str, Each]) -> dict[str, Each]:
    """Read a list of names with commas, in its order, each once.

    Args:
        text: the list.
        known: what there is, by name: `CASES`, or the settings of another benchmark.

    Raises:
        ConfigError: no name, or an unknown one; the message lists those there are.

    >>> list(chosen("mcmahan, lenet,mcmahan", CASES))
    ['mcmahan', 'lenet']
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--cases names no case. Known: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown_name("case", name, known)
    return {name: known[name] for name in names}
