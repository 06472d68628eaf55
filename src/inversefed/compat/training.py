"""What 2020 kept under `training`: the strategies, and the routine that follows them."""

from inversefed.compat import training_routine
from inversefed.compat.strategy import TrainingStrategy, training_strategy
from inversefed.compat.training_routine import train

__all__ = ["TrainingStrategy", "train", "training_routine", "training_strategy"]
