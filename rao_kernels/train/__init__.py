"""Training: `RAOTrainer` and `RAOConfig` on `transformers.Trainer`."""

from .config import RAOConfig
from .trainer import RAOTrainer

__all__ = ["RAOConfig", "RAOTrainer"]
