"""Training: `RAOTrainer` and `OnlineTrainer` on `transformers.Trainer`."""

from .config import RAOConfig
from .online import OnlineTrainer
from .online_config import OnlineConfig
from .trainer import RAOTrainer

__all__ = ["OnlineConfig", "OnlineTrainer", "RAOConfig", "RAOTrainer"]
