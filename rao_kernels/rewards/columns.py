"""The columns of a record that was scored: where its rewards go, and which of them may stay."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..data import Record, ShapeOptions
from ..data.messages import is_absent
from ..data.shapes import PAIR_COLUMNS, find_shape
from ..errors import InputError

# Columns whose turns are in the prompt, where it is written as a whole.
_OF_PROMPTS = ("history", "context")
_OF_PAIRS = (*PAIR_COLUMNS, "score_chosen", "score_rejected")
# What scores a column that holds rewards.
_SCORED_BY = {"rewards": "--overwrite", "ref_rewards": "--ref_samples", "gold_reward": "--gold"}


def with_rewards(
    columns: Mapping[str, Any], record: Record, rewards: Sequence[Any], shapes: ShapeOptions
) -> dict[str, Any]:
    """Return the columns, with the rewards in those by which the data reader finds them.

    A record that gets the column `responses` keeps its own columns, but for those that the reader
    refuses beside it: turns that are in the prompt, and a pair beside a list of all responses.
    """
    if not is_absent(columns.get("responses")):
        return {**columns, "rewards": list(rewards)}
    if set(PAIR_COLUMNS) <= set(find_shape(record.where, columns, shapes).needs):
        return {**columns, "score_chosen": rewards[0], "score_rejected": rewards[1]}
    refused = (*_OF_PROMPTS, *_OF_PAIRS)
    kept = {name: value for name, value in columns.items() if name not in refused}
    own = {"prompt": record.prompt, "responses": record.responses, "rewards": list(rewards)}
    return {**kept, **own}


def check_left(
    columns: Mapping[str, Any], record: Record, scored: Collection[str], scorer: Mapping[str, Any]
) -> None:
    """Raise if a record keeps rewards of another scorer: `scorer` names one for all of them.

    Args:
        columns, record: of the record.
        scored: the columns of rewards that are written anew.
        scorer: describes what scores these.
    """
    was = columns.get("scorer")
    if is_absent(was) or was == scorer:
        return
    there = {name for name in _SCORED_BY if not is_absent(columns.get(name))}
    if record.rewards is not None:
        there.add("rewards")
    for name, flag in _SCORED_BY.items():
        if name in there and name not in scored:
            raise InputError(
                "data",
                f"records whose `{name}`, which this call leaves, are of the same scorer as it",
                f"{record.where}, scored by {json.dumps(was)}",
                f"Score them again too ({flag}), give that scorer, or remove the column.",
            )
