"""`rao-kernels annotate`: give the responses of records their rewards.

Records are read from .jsonl, .jsonl.gz or .parquet files and written, with all their columns, to a
.jsonl file that `train` reads as it is. A command that was stopped goes on where it was when it is
given again. A picture of the rewards is drawn beside the output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data import BadRows
from ..errors import InputError
from ..rewards import AnnotateOptions, annotate, summarize
from ..rewards.summary import draw
from .options import parse_options
from .scorer_options import ScorerOptions, check_scorer, make_scorer
from .shape_options import ShapeArguments


@dataclass
class AnnotateArguments:
    """The data of `rao-kernels annotate`, and what is scored of it."""

    data: list[str] = field(metadata={"help": "Files of records (.jsonl, .jsonl.gz, .parquet)."})
    output: str = field(metadata={"help": "File of the scored records (.jsonl)."})
    ref_samples: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files of responses sampled by the reference; their rewards become the "
            "ref_rewards of the records of the same prompt (QRPO, A*-PO)."
        },
    )
    gold: bool = field(
        default=False, metadata={"help": "Score the column `gold` too, into gold_reward."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace rewards that the records have already."}
    )
    limit: int | None = field(default=None, metadata={"help": "Take the first so many records."})
    bad_rows: BadRows = field(
        default="raise",
        metadata={
            "help": "Raise at a bad record or one without a reward, or skip and report such."
        },
    )
    batch_size: int = field(
        default=32, metadata={"help": "Records that are scored and written at once."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})


TYPES = [AnnotateArguments, ShapeArguments, ScorerOptions]


def run(argv: Sequence[str]) -> None:
    """Parse the options, score, and print what the rewards are like."""
    arguments, shapes, source = parse_options("rao-kernels annotate", TYPES, argv)
    check_scorer(source)
    if Path(arguments.output).suffix != ".jsonl":
        expected = "a file whose name ends with .jsonl"
        raise InputError("output", expected, arguments.output)
    options = AnnotateOptions(
        gold=arguments.gold,
        overwrite=arguments.overwrite,
        limit=arguments.limit,
        bad_rows=arguments.bad_rows,
        batch_size=arguments.batch_size,
        shapes=shapes.options(),
    )
    report = annotate(
        arguments.data,
        arguments.output,
        make_scorer(source),
        options,
        ref_samples=arguments.ref_samples,
        progress=not arguments.disable_tqdm,
    )
    for skipped in report.skipped:
        print(f"skipped {skipped}", file=sys.stderr)
    print(f"data: {report.describe()}")
    print(f"{report.rows} records are in {arguments.output}")
    summary = summarize(arguments.output)
    if summary is not None:
        print(summary.describe())
        draw(summary, Path(arguments.output).with_suffix(".png"))
