"""The shapes of records: the columns by which one is told, and what its columns mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, InputError
from . import shapes_lists, shapes_pairs, shapes_single
from .drafts import Draft
from .messages import is_absent, show, to_python

Columns = Mapping[str, Any]
# The answers of a pair: a record of them has no `responses`.
PAIR_COLUMNS = ("chosen", "rejected")
_FIX = "See docs/data.md for the shapes, or give the columns their names with `columns`."


@dataclass(frozen=True)
class Shape:
    """A shape of records.

    name: as `ShapeOptions.shape` and `DataReport.shapes` say it.
    needs: columns that a record must have; ``a|b``: one of them.
    draft: reads a record.
    uses: columns that belong to the prompt and that `draft` reads; other shapes refuse them.
    is_one: tells the shape from others of the same columns by their values.
    group_by: the column of the prompt, where a record has one response and those of consecutive
        records of one prompt belong together.
    """

    name: str
    needs: tuple[str, ...]
    draft: Callable[[str, Columns, ShapeOptions], Draft]
    uses: tuple[str, ...] = ()
    is_one: Callable[[Columns], bool] = lambda _: True
    group_by: str | None = None

    def fits(self, row: Columns, columns: set[Any]) -> bool:
        """Return whether `row`, of which these columns count, has the shape."""
        return all(columns & set(need.split("|")) for need in self.needs) and self.is_one(row)


def _is_transcript(row: Columns) -> bool:
    return is_absent(row.get("prompt")) and all(
        isinstance(row.get(name), str) and row[name].lstrip().startswith("Human:")
        for name in ("chosen", "rejected")
    )


def _has_ranks(row: Columns) -> bool:
    answers = to_python(row.get("answers"))
    return isinstance(answers, (list, tuple)) and all(
        isinstance(answer, Mapping) and "rank" in answer for answer in answers
    )


# The first that fits is taken: those of more telling columns come first.
SHAPES = (
    Shape("native", ("responses", "rewards"), shapes_lists.native),
    Shape("unscored", ("responses",), shapes_lists.native),
    Shape(
        "all_generated_responses",
        ("all_generated_responses", "all_rm_scores|scores"),
        shapes_lists.all_generated,
    ),
    Shape("ultrafeedback", ("instruction", "completions"), shapes_lists.ultrafeedback),
    Shape("nemo_rl", ("context", "completions"), shapes_lists.nemo_rl, ("context",)),
    Shape("distilabel", ("generations", "rating|ratings"), shapes_lists.distilabel),
    Shape("nectar", ("prompt", "answers"), shapes_lists.nectar, is_one=_has_ranks),
    Shape("argilla", ("chosen_response", "rejected_response"), shapes_pairs.argilla),
    Shape(
        "sharegpt_pair", ("conversations", "chosen", "rejected"), shapes_pairs.sharegpt, ("tools",)
    ),
    Shape("anthropic_hh", ("chosen", "rejected"), shapes_pairs.transcripts, is_one=_is_transcript),
    Shape("pair", ("chosen", "rejected"), shapes_pairs.pair, ("history",)),
    Shape("safe_rlhf", ("response_0", "response_1", "better_response_id"), shapes_pairs.safe_rlhf),
    Shape("shp", ("human_ref_A", "human_ref_B", "labels"), shapes_pairs.shp, ("history",)),
    Shape(
        "helpsteer3",
        ("response1", "response2", "overall_preference"),
        shapes_pairs.helpsteer3,
        ("context",),
    ),
    Shape(
        "helpsteer",
        ("prompt", "response", "helpfulness"),
        shapes_single.helpsteer,
        group_by="prompt",
    ),
    Shape("openrlhf", ("input", "output", "reward"), shapes_single.openrlhf, group_by="input"),
    Shape("unpaired", ("completion", "label"), shapes_single.unpaired),
    Shape("completion", ("completion",), shapes_single.completion),
    Shape("alpaca", ("instruction", "output"), shapes_single.alpaca, ("history",)),
    Shape("messages", ("messages",), shapes_single.messages),
    Shape("sharegpt", ("conversations",), shapes_single.sharegpt),
    Shape("text", ("text",), shapes_single.text),
    Shape("prompt", ("prompt|instruction|question|input",), shapes_single.prompt, ("history",)),
)
_BY_NAME = {shape.name: shape for shape in SHAPES}


@dataclass(frozen=True)
class ShapeOptions:
    """How the columns of records are read.

    columns: new names of columns, by their names in the data; a renamed column replaces one that
        has the new name.
    shape: name of the shape that all records have; None: each record's is told by its columns.
    label_rewards: rewards of preferred and of other responses, for records with an order or labels
        and without rewards; None: these records have no rewards.
    rank_rewards: let the rewards of ranked responses be minus their ranks.
    weights: weight of each score in a reward, where responses have several scores (HelpSteer,
        UltraFeedback); None: `helpfulness` of HelpSteer, `overall_score` of UltraFeedback.
    responses_required: refuse a record without responses; otherwise it is read as a prompt.
    """

    columns: Mapping[str, str] | None = None
    shape: str | None = None
    label_rewards: tuple[float, float] | None = None
    rank_rewards: bool = False
    weights: Mapping[str, float] | None = None
    responses_required: bool = True

    def __post_init__(self) -> None:
        if self.shape is not None and self.shape not in _BY_NAME:
            raise InputError("shape", f"one of {', '.join(_BY_NAME)}", show(self.shape))
        labels = self.label_rewards
        if labels is not None and not (len(labels) == 2 and all(map(math.isfinite, labels))):
            expected = "two finite numbers, the rewards of preferred and of other responses"
            raise InputError("label_rewards", expected, show(labels))
        weights = self.weights
        if weights is not None and not (weights and all(map(math.isfinite, weights.values()))):
            raise InputError("weights", "a finite number per score, at least one", show(weights))


def rename_columns(where: str, row: Columns, names: Mapping[str, str] | None) -> Columns:
    """Return the record with its columns renamed."""
    if not names:
        return row
    for name in names:
        if name not in row:
            problem = f"no column {show(name)}, which `columns` renames, among {show(list(row))}"
            raise DataError(where, problem)
    replaced = set(names.values())
    kept = {k: value for k, value in row.items() if k not in names and k not in replaced}
    return kept | {new: row[name] for name, new in names.items()}


def find_shape(where: str, row: Columns, options: ShapeOptions) -> Shape:
    """Return the shape of a record: the first one that fits; None and NaN are no values."""
    told = {name for name, value in row.items() if not _is_missing(value)}
    candidates: tuple[Shape, ...] = SHAPES if options.shape is None else (_BY_NAME[options.shape],)
    if options.responses_required:
        candidates = tuple(shape for shape in candidates if shape.name != "prompt")
    for columns in (told, set(row)):
        for shape in candidates:
            if shape.fits(row, columns):
                return shape
    problem = f"no shape of records has its columns {show(list(row), 200)}"
    if options.shape is None and _BY_NAME["prompt"].fits(row, told):
        problem = f"has a prompt and no responses, among its columns {show(list(row), 200)}"
        fix = "Sample some with `rao-kernels generate`; docs/data.md lists the names of columns."
        raise DataError(where, problem, fix)
    if options.shape is not None:
        needs = ", ".join(_BY_NAME[options.shape].needs)
        problem = f"the shape {options.shape} has the columns {needs}; got {show(list(row), 200)}"
    raise DataError(where, problem, _FIX)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)
