"""Training of reward models on pairs."""

from .config import RewardConfig
from .trainer import RewardTrainer

__all__ = ["RewardConfig", "RewardTrainer"]
