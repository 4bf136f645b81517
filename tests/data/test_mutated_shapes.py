"""100,000 damaged records of all shapes: each is loaded or named by its line, and none is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
from hypothesis import strategies

from rao_kernels.data import DataReport, Record, ShapeOptions, iter_raw
from tests import seeds
from tests.data.shape_rows import CASES, RESULT, USER, YES, Case, Row

COLUMNS = sorted({name for case in CASES for name in case.row})
COLUMNS += ["gold", "gold_reward", "ref_rewards", "reward_ensemble", "prompt_ids", "response_ids"]
COLUMNS += ["old_logps", "margin", "images", "system_prompt", "label", "unknown"]
ATOMS: list[Any] = [None, True, 0, 1, -2.5, 10**400, float("nan"), math.inf, "", "x", "\ud800"]
ATOMS += ["\n\nHuman: x", "[1]", "{", [], {}, [[]], [None], ["x", "y"], [1, 2], USER, YES, RESULT]
ATOMS += [[USER, YES], [YES, USER], [{"from": "gpt", "value": "x"}], [{"rank": 1}], {"role": 3}]


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container inside a value, with each of its keys."""
    if isinstance(value, (dict, list)):
        for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from places_in(child)


def mutate(random: Random, row: Row) -> None:
    """Change one thing in a record."""
    kind = random.randrange(6)
    places = list(places_in(row))
    if not places or kind == 0:
        row[random.choice(COLUMNS)] = deepcopy(random.choice(ATOMS))
        return
    container, key = random.choice(places)
    if kind == 1:
        del container[key]
    elif kind == 2:
        container[key] = [container[key]]
    elif kind == 3 and isinstance(container, dict):
        container[random.choice(COLUMNS)] = container.pop(key)
    elif kind == 4 and isinstance(container, list):
        container.append(deepcopy(container[key]))
    else:
        container[key] = deepcopy(random.choice(ATOMS))


def make_line(random: Random, number: int) -> tuple[bytes, Case | None]:
    """A line, and the case that it is, if nothing was changed in it."""
    case = random.choice(CASES)
    row = json.loads(json.dumps(case.row))
    changes = random.choice([0, 1, 1, 1, 2, 3])
    for _ in range(changes):
        mutate(random, row)
    line = json.dumps(row | {"number": number}).encode()
    if random.random() < 0.03:
        cut = random.randrange(max(1, len(line) - len(f', "number": {number}}}')))
        return line[:cut] + random.randbytes(1).replace(b"\n", b"") + line[cut + 1 :], None
    return line, None if changes else case


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from texts_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from texts_in(child)


def check(columns: Mapping[str, Any], record: Record) -> None:
    """Assert what holds for every record."""
    count = len(record.responses)
    assert count
    for values in (record.rewards, record.preferred, *(record.reward_ensemble or ())):
        assert values is None or len(values) == count
    assert all(math.isfinite(reward) for reward in record.rewards or ())
    if record.sampled is not None:
        assert len(record.sampled.response_ids) == count
    given = list(texts_in(columns))
    for response in record.responses:
        turns = [response] if isinstance(response, str) else [one["content"] for one in response]
        assert all(any(turn in text for text in given) for turn in turns)
        if not isinstance(response, str):
            assert response[0]["role"] == response[-1]["role"] == "assistant"
            assert isinstance(record.prompt, list)
    if isinstance(record.prompt, list):
        assert record.prompt[-1]["role"] != "assistant"


def test_each_of_100_000_records_is_loaded_or_named(tmp_path: Path) -> None:
    random = Random(seeds.shifted(7))
    total = 100_000
    lines = [make_line(random, number) for number in range(1, total + 1)]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines))
    report = DataReport()
    loaded: list[int] = []
    for columns, record in iter_raw(path, bad_rows="skip", report=report):
        check(columns, record)
        numbers = columns["number"] if isinstance(columns["number"], list) else [columns["number"]]
        assert record.where == f"{path}:{numbers[0]}"
        loaded += numbers
        case = lines[numbers[0] - 1][1]
        if case is not None and len(numbers) == 1:
            assert (record.prompt, record.responses) == (case.prompt, case.responses)
            assert (record.rewards, record.preferred) == (case.rewards, case.preferred)
    named = [int(note.split(": ")[0].rsplit(":", 1)[1]) for note in report.skipped]
    assert sorted(loaded + named) == list(range(1, total + 1))
    unchanged = {number for number, (_, case) in enumerate(lines, 1) if case is not None}
    assert not unchanged & set(named)
    assert 0.2 * total < len(named) < 0.8 * total
    assert set(report.shapes) >= {case.shape for case in CASES}


JUNK = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=5)
    | strategies.sampled_from(ATOMS),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(
            strategies.sampled_from([*COLUMNS, "role", "content", "from", "value"]), inner
        )
    ),
    max_leaves=8,
)
ROWS = strategies.builds(
    lambda case, changes, gone: {
        name: value for name, value in (case.row | changes).items() if name not in gone
    },
    strategies.sampled_from(CASES),
    strategies.dictionaries(strategies.sampled_from(COLUMNS), JUNK, max_size=3),
    strategies.sets(strategies.sampled_from(COLUMNS), max_size=2),
)


@hypothesis.seed(seeds.shifted(8))
@hypothesis.settings(max_examples=60, deadline=None, database=None)
@hypothesis.given(strategies.lists(ROWS, max_size=20), strategies.booleans())
def test_any_value_in_any_column_is_loaded_or_named(rows: list[Row], required: bool) -> None:
    options = ShapeOptions(responses_required=required, label_rewards=(1.0, 0.0))
    report = DataReport()
    good = {"text": "one that is usable"}
    numbered = [row | {"number": number} for number, row in enumerate([good, *rows])]
    pairs = list(iter_raw(numbered, bad_rows="skip", report=report, options=options))
    # A record of several lines has a list in each column that is not about the prompt.
    loaded = [
        len(columns["number"]) if isinstance(columns["number"], list) else 1 for columns, _ in pairs
    ]
    assert sum(loaded) + len(report.skipped) == len(rows) + 1
