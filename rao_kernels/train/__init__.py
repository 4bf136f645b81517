"""Training on `transformers.Trainer`: `RAOTrainer`, `OnlineTrainer`, `RewardTrainer`."""

from .config import RAOConfig
from .online import OnlineTrainer
from .online_config import OnlineConfig
from .reward_config import RewardConfig
from .reward_trainer import RewardTrainer
from .trainer import RAOTrainer

__all__ = [
    "OnlineConfig",
    "OnlineTrainer",
    "RAOConfig",
    "RAOTrainer",
    "RewardConfig",
    "RewardTrainer",
]
