"""Training on `transformers.Trainer`: `RAOTrainer`, `OnlineTrainer`, `RewardTrainer`."""

from .config import RAOConfig
from .online import OnlineConfig, OnlineTrainer
from .reward import RewardConfig, RewardTrainer
from .trainer import RAOTrainer

__all__ = [
    "OnlineConfig",
    "OnlineTrainer",
    "RAOConfig",
    "RAOTrainer",
    "RewardConfig",
    "RewardTrainer",
]
