"""Training on responses that the model samples as it learns."""

from .config import OnlineConfig
from .trainer import OnlineTrainer

__all__ = ["OnlineConfig", "OnlineTrainer"]
