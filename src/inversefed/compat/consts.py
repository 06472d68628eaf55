"""Channel means and standard deviations of the data sets, as in 2020."""

from inversefed.zoo.constants import *  # noqa: F403
