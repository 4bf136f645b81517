"""Lines of data that hold one response each, joined to records of one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .fields import PROMPT_COLUMNS
from .records import Record
from .shapes import Shape


@dataclass(frozen=True)
class Line:
    """A line of data, or several that are one record: its columns, the record and its shape."""

    columns: Mapping[str, Any]
    record: Record
    shape: Shape


def join_groups(lines: Iterable[Line]) -> Iterator[Line]:
    """Join consecutive lines of one prompt, where the shape says that they are one record.

    A line of another shape is yielded before the next one is read.
    """
    group: list[Line] = []
    for line in lines:
        if group and not _belongs(line, group[0]):
            yield _join(group)
            group = []
        if line.shape.group_by is None:
            yield line
        else:
            group.append(line)
    if group:
        yield _join(group)


def _belongs(line: Line, first: Line) -> bool:
    """Return whether the line is one record with the first line of a group.

    What a line says of its sampled tokens and of several reward models is kept apart.
    """
    own, other = line.record, first.record
    if line.shape != first.shape or any(one.sampled or one.reward_ensemble for one in (own, other)):
        return False
    return all(getattr(own, name) == getattr(other, name) for name in _SAME)


_SAME = ("prompt", "tools", "gold", "gold_reward", "ref_rewards")


def _join(group: list[Line]) -> Line:
    first = group[0]
    records = [line.record for line in group]
    kept = {first.shape.group_by, *PROMPT_COLUMNS}
    names = dict.fromkeys(name for line in group for name in line.columns)
    columns = {
        name: first.columns.get(name)
        if name in kept
        else [line.columns.get(name) for line in group]
        for name in names
    }
    record = replace(
        records[0],
        responses=[response for record in records for response in record.responses],
        rewards=[reward for record in records for reward in record.rewards or ()],
    )
    return replace(first, columns=columns, record=record)
