"""Tokenized records as a loss reads them: transformed, and checked for what the loss needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..data import (
    DataReport,
    TokenizedRow,
    TokenizeOptions,
    as_pairs,
    drop_unlabelled,
    mark_preferred,
    pair_mismatched,
    with_gold,
)
from ..errors import DataError, InputError
from .config import RAOConfig

# Inputs of a loss that a record must have: what lacks without it, and what to do.
_COLUMNS = {
    "rewards": (
        "no rewards",
        "Score it first, with `rao-kernels annotate`, or take a loss without rewards, such as "
        "'dpo' for pairs.",
    ),
    "preferred": (
        "no labels",
        "Give rewards (`rao-kernels annotate`), `chosen` and `rejected`, or `label`.",
    ),
    "ref_rewards": (
        "no column `ref_rewards`",
        "Sample responses of the reference with `rao-kernels generate`, and score them with "
        "`rao-kernels annotate`.",
    ),
    "reward_ensemble": (
        "no column `reward_ensemble`",
        "Fill it with `rao-kernels annotate` and several reward models.",
    ),
    "old_token_logps": (
        "no column `old_logps`",
        "Sample the responses with `rao-kernels generate --old_logps`, or train on samples of the "
        "current policy with `rao-kernels online`.",
    ),
}


def tokenize_options(config: RAOConfig) -> TokenizeOptions:
    return TokenizeOptions(config.max_length, config.truncate_responses, config.prompt_format)


def rows_for_loss(
    rows: Iterable[TokenizedRow], config: RAOConfig, report: DataReport
) -> Iterator[TokenizedRow]:
    """Yield the records as the loss, alone or a sum, reads them; raise if one lacks an input.

    What is dropped is complete in the report once the last one was yielded.
    """
    needs = row_needs(config)
    if config.spec.unit == "pair" or "preferred" in needs:
        rows = _with_order(rows, config)
    if config.spec.unit == "pair":
        rows = as_pairs(rows, report)
    elif "preferred" in (*needs, *config.spec.optional):
        if "preferred" in needs:
            rows = drop_unlabelled(rows, report)
        rows = _counting_ties(mark_preferred(rows), report)
    if "gold" in needs:
        rows = with_gold(rows, tokenize_options(config), report, rewarded="rewards" in needs)
    if "kl_logps" in needs:
        rows = pair_mismatched(rows, kl_block(config), config.max_length)
    parts = config.spec.bound_parts(config.hyperparameters())
    of_probabilities = [spec.name for spec, _ in parts if "rewards" in spec.probabilities]
    for row in rows:
        for need in needs:
            _check_need(row, need, config)
        _check_probabilities(row, of_probabilities)
        yield row


def row_needs(config: RAOConfig) -> tuple[str, ...]:
    """Return the inputs that the loss takes from records; advantages are made of rewards."""
    needs = config.spec.required_inputs(config.hyperparameters())
    return tuple("rewards" if need == "advantages|rewards" else need for need in needs)


def kl_block(config: RAOConfig) -> int:
    """Return the number of records among which KTO's mismatched responses are exchanged."""
    block = config.per_device_train_batch_size
    if block < 2:
        raise InputError(
            "per_device_train_batch_size",
            f"at least 2 for the loss {config.loss!r}, whose KL term pairs each prompt of a batch "
            "with a response to another one",
            block,
            "Raise it, and lower gradient_accumulation_steps.",
        )
    return block


def lacking(where: str, need: str, config: RAOConfig) -> DataError:
    """Return the error that a record lacks an input of the loss."""
    problem, fix = _COLUMNS[need]
    return DataError(where, f"{problem}, which the loss {config.loss!r} needs", fix)


def _with_order(rows: Iterable[TokenizedRow], config: RAOConfig) -> Iterator[TokenizedRow]:
    """Raise if a record has neither rewards nor labels, which is no reason to drop it."""
    for row in rows:
        if row.rewards is None and row.preferred is None:
            raise lacking(row.where, "preferred", config)
        yield row


def _counting_ties(rows: Iterable[TokenizedRow], report: DataReport) -> Iterator[TokenizedRow]:
    for row in rows:
        if len(row.responses) > 1 and row.preferred is not None and all(row.preferred):
            report.rows_all_preferred += 1
        yield row


def _check_need(row: TokenizedRow, need: str, config: RAOConfig) -> None:
    if need == "old_token_logps":
        lacks = need not in row.token_inputs
    else:
        lacks = need in _COLUMNS and getattr(row, need) is None
    if lacks:
        raise lacking(row.where, need, config)
    if need == "old_token_logps" and row.logp_temperature != 1.0:
        problem = f"its `old_logps` are of temperature {row.logp_temperature:g}, and the loss "
        problem += f"{config.loss!r} compares them with the model's at 1"
        fix = "Sample with --temperature 1, or train with `rao-kernels online`, at any temperature."
        raise DataError(row.where, problem, fix)


def _check_probabilities(row: TokenizedRow, losses: list[str]) -> None:
    """Raise if one of `losses` reads rewards as probabilities and one is outside [0, 1].

    Losses check only tensors on the CPU; this holds for every device.
    """
    for number, reward in enumerate(row.rewards or () if losses else ()):
        if not 0 <= reward <= 1:
            problem = f"reward {number} is {reward:g}, and the loss {losses[0]!r} reads "
            problem += "rewards as probabilities of winning, from 0 to 1"
            raise DataError(row.where, problem, "Give win probabilities as rewards.")
