"""Fall back to the CPU where there is no accelerator."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import torch

from ..errors import InputError

if TYPE_CHECKING:
    from .config import RunConfig


logger = logging.getLogger(__name__)


def fall_back_to_cpu(config: RunConfig) -> None:
    """Set `use_cpu`, which transformers asks for, if there is no accelerator.

    Raises:
        InputError: fp16, which a CPU cannot train in.
    """
    if not config.use_cpu and not config.deepspeed and not _has_accelerator():
        config.use_cpu = True
        _say_so()
    if config.use_cpu and config.fp16:
        raise InputError("fp16", "False on a CPU", True, "Use bf16: it needs no loss scaling.")


def _has_accelerator() -> bool:
    from transformers.utils.import_utils import is_torch_xla_available

    return torch.accelerator.is_available() or bool(is_torch_xla_available())


@functools.cache
def _say_so() -> None:
    logger.warning("no GPU or other accelerator found: training on the CPU")
