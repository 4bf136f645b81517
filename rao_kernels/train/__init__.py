"""Training: `RAOTrainer` and `RewardTrainer` with their settings, on `transformers.Trainer`."""

from .config import RAOConfig
from .reward_config import RewardConfig
from .reward_trainer import RewardTrainer
from .trainer import RAOTrainer

__all__ = ["RAOConfig", "RAOTrainer", "RewardConfig", "RewardTrainer"]
