"""Channel means and standard deviations of the data sets, as in 2020."""

from inversefed.zoo.constants import *  # noqa: F403

BENCHMARK = True
"""Scripts of 2020 begin with `torch.backends.cudnn.benchmark = inversefed.consts.BENCHMARK`; nothing here sets it."""
