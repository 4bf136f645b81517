"""What a training command evaluates with, and when."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from transformers import IntervalStrategy
from transformers.trainer_utils import SaveStrategy

from ..data import RecordSource
from ..data.records import NoRowsError
from ..data.transforms import SingleRecordError
from ..errors import InputError
from ..train.config import RunConfig
from .arguments import DataArguments

Prepare = Callable[[RecordSource], Any]


def evaluation_data(
    records: RecordSource | None, data: DataArguments, config: RunConfig, prepare: Prepare
) -> Any:
    """Return the held-out records, and set in `config` when they are evaluated.

    Those of --eval_data are returned as they are. Those held out by --eval_fraction are prepared
    here, because they may be too few: then None, and a warning.

    Raises:
        InputError: there is nothing to evaluate with, and the settings need evaluations.
    """
    found: Any = records
    if data.eval_data is None:
        found = _held_out_part(records, data, config, prepare)
    if found is None:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.NO, False
    elif config.eval_strategy == IntervalStrategy.NO:
        config.eval_strategy, config.eval_on_start = IntervalStrategy.EPOCH, True
    return found


def _held_out_part(
    records: RecordSource | None, data: DataArguments, config: RunConfig, prepare: Prepare
) -> Any:
    problem = "no records are held out"
    if records is not None:
        try:
            return prepare(records)
        except (NoRowsError, SingleRecordError) as error:
            problem = str(error).rstrip(".")
    if needed := _need_of_evaluations(config):
        expected = f"records for the evaluations that {needed} needs"
        fix = "Give --eval_data, or a larger --eval_fraction."
        raise InputError("eval_fraction", expected, f"{data.eval_fraction:g}: {problem}", fix)
    if records is not None:
        print(
            f"warning: training goes on without evaluation: of the data {data.eval_fraction:.0%} "
            f"were to be held out, but {problem}. Give --eval_data, or a larger --eval_fraction.",
            file=sys.stderr,
        )
    return None


def _need_of_evaluations(config: RunConfig) -> str | None:
    """Return the setting that asks for evaluations."""
    if config.load_best_model_at_end:
        return "load_best_model_at_end"
    if config.save_strategy == SaveStrategy.BEST:
        return "save_strategy 'best'"
    if config.eval_strategy != IntervalStrategy.NO:
        return f"eval_strategy {IntervalStrategy(config.eval_strategy).value!r}"
    return None
