"""Thousands of generated rows, good and bad: each is loaded as it is or named, and none is lost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rao_kernels.data import DataReport, Record, TokenizeOptions, load_records, tokenize_records
from rao_kernels.errors import DataError
from tests import seeds
from tests.train.tiny import tiny_tokenizer

Row = dict[str, Any]
Expected = tuple[Any, list[str], list[float] | None]

# Line and paragraph separators of Unicode are not ends of lines in a file of JSON lines.
WORDS = [
    "a",
    "say it",
    "naïve",
    "日本",
    "🙂",
    "\u2028",
    "\x85",
    "\x00",
    '"',
    "\\",
    "\n",
    "{}",
    "\ufeff",
]
ROLES = ["system", "user", "assistant", "tool"]


def text(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, 4)))


def message(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def conversation(random: Random) -> list[Row]:
    """Leading turns, all different, that end with a question."""
    turns = [
        message(random.choice(ROLES), f"{i} {text(random)}") for i in range(random.randint(0, 3))
    ]
    return [*turns, message("user", f"last {text(random)}")]


def good_row(random: Random) -> tuple[Row, Expected]:
    """A row and what has to come of it."""
    count = random.choice([2, 2, 1, 3])
    answers = [text(random) for _ in range(count)]
    rewards = [random.choice([0, 1, -2.5, 1e-3, 999_999, random.random()]) for _ in range(count)]
    whole: Any = text(random)
    given: Row = {"prompt": whole}
    responses: list[Any] = list(answers)
    if random.random() < 0.6:
        whole = conversation(random)
        inside = random.randint(0, len(whole))  # turns that the answers hold
        while inside and whole[-inside]["role"] == "assistant":
            inside -= 1  # an answer that begins with an assistant's is the response as a whole
        before = whole[: len(whole) - inside]
        turns = whole[len(whole) - inside :]
        given = {"prompt": before} if before else {}
        if not before:
            # The prompt may be given once more.
            given = random.choice([{}, {"prompt": None}, {"prompt": whole}])
            given = random.choice([given, {"prompt": whole[-1]["content"]}])
        responses = [[*turns, message("assistant", answer)] for answer in answers]
    if count == 2 and random.random() < 0.5:
        row = given | {"chosen": responses[0], "rejected": responses[1]}
        if random.random() < 0.5:
            return row, (whole, answers, None)
        row |= {"score_chosen": rewards[0], "score_rejected": rewards[1]}
        return row, (whole, answers, [float(reward) for reward in rewards])
    row = given | {"responses": responses, "rewards": rewards}
    return row, (whole, answers, [float(reward) for reward in rewards])


NEUTRAL: list[Row] = [
    {"id": 7, "source": "x", "scores": [float("nan")], "meta": {"tools": [1], "prompt": "z"}},
    {"tools": None, "images": [], "system": ""},
    {"rating": 10**400, "\ud800": 1},
]


def texts_in(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The paths of all texts inside a value."""
    if not isinstance(value, (list, dict)):
        return [path] if isinstance(value, str) else []
    children = value.items() if isinstance(value, dict) else enumerate(value)
    return [found for key, child in children for found in texts_in(child, (*path, key))]


def poison_text(random: Random, row: Row) -> None:
    """A lone surrogate is bad anywhere; what is no text only where a text must be."""
    read = {"prompt", "responses", "chosen", "rejected"} & set(row)
    path = random.choice([path for key in sorted(read) for path in texts_in(row[key], (key,))])
    target: Any = row
    for key in path[:-1]:
        target = target[key]
    # An absent or repeated prompt may be given in the answers.
    harmless = path == ("prompt",)
    poisons: list[Any] = [f"{text(random)}\udc00", "\ud800", 5, True, {"a": 1}]
    target[path[-1]] = random.choice(poisons if harmless else [*poisons, None, [], ["x"], 10**400])


def poison_reward(random: Random, row: Row) -> None:
    bad = random.choice(
        [
            float("nan"),
            float("inf"),
            10**400,
            -(10**400),
            1e300,
            True,
            "1",
            None,
            [1.0],
            {},
            1e6 + 1,
        ]
    )
    if "rewards" in row:
        row["rewards"] = [*row["rewards"]]
        row["rewards"][random.randrange(len(row["rewards"]))] = bad
    else:
        row["score_chosen"], row["score_rejected"] = random.sample([bad, 1.0], 2)


def poison_shape(random: Random, row: Row) -> None:
    answers = "responses" if "responses" in row else "chosen"
    choices: list[Callable[[], Any]] = [
        lambda: row.pop(answers),
        lambda: row.update({answers: random.choice([None, 3, {}, [], [[]], [None], True])}),
        lambda: row.update(tools=random.choice(["search", {"name": "x"}, [3], 5])),
        lambda: row.update(images=["a.png"]),
        lambda: row.update(rewards=[1.0] * 9),
        lambda: row.update(prompt=["x"]),
        lambda: row.update(prompt=[message("user", "x") | {"tool_calls": [{"id": 1}]}]),
        lambda: row.update(gold_reward="high"),
        lambda: row.update(prompt=random.choice([3, True, {"a": "b"}, [[]], [None], [{}]])),
    ]
    random.choice(choices)()


def damaged_line(random: Random, line: bytes) -> bytes:
    """A line that is no row whatever its row was."""
    return random.choice(
        [
            line[:-1] + b', "id": 1, "id": 1}',
            line[:-1] + b', "x": ' + b"9" * 5000 + b"}",
            line[:-1] + b', "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            line[:-1] + b', "x": {"y": "' + b"caf\xe9" + b'"}}',
            line[:-1] + b', "x": "\xed\xa0\x80"}',
            line[:-1],
            line[: len(line) // 2],
            line + line,
            b"[" + line + b"]",
            line.decode().encode("utf-16"),
            b"\xff",
            random.choice([b"null", b"3", b'"prompt"', b"[]", b"NaN", b"-"]),
        ]
    ).replace(b"\n", b" ")


def generate(random: Random) -> tuple[bytes, Expected | None]:
    """A line and what has to come of it, None where it is bad."""
    row, expected = good_row(random)
    row |= random.choice([{}, {}, *NEUTRAL])
    row = dict(random.sample(list(row.items()), len(row)))
    kind = random.random()
    bad = kind < 0.6
    if kind < 0.4:
        row = json.loads(json.dumps(row))
        random.choice([poison_text, poison_reward, poison_shape])(random, row)
    ascii_only = bad or "\ud800" in row or random.random() < 0.5
    line = json.dumps(row, ensure_ascii=ascii_only).encode()
    if 0.4 <= kind < 0.6:
        line = damaged_line(random, line)
    return line + random.choice([b"\n", b"\r\n", b" \n"]), None if bad else expected


def check_line(record: Record, expected: Expected) -> None:
    assert (record.prompt, record.responses, record.rewards) == expected


def test_each_line_is_loaded_as_it_is_or_named(tmp_path: Path) -> None:
    random = Random(seeds.shifted(1))
    lines = [generate(random) for _ in range(4000)]
    good = {number: one for number, (_, one) in enumerate(lines, 1) if one is not None}
    assert 1000 < len(good) < 3000
    data = b"".join(line for line, _ in lines)
    for name, content in {"x.jsonl": data, "x.jsonl.gz": gzip.compress(data, 1)}.items():
        path = tmp_path / name
        path.write_bytes(content)
        report = DataReport()
        records = load_records(path, bad_rows="skip", report=report)
        assert [record.where for record in records] == [f"{path}:{number}" for number in good]
        for record, expected in zip(records, good.values(), strict=True):
            check_line(record, expected)
        bad = [number for number in range(1, len(lines) + 1) if number not in good]
        assert [note.split(": ")[0] for note in report.skipped] == [f"{path}:{n}" for n in bad]


def test_each_bad_line_alone_raises_with_its_place(tmp_path: Path) -> None:
    random = Random(seeds.shifted(2))
    path = tmp_path / "x.jsonl"
    start = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}).encode() + b"\n\n"
    for _ in range(500):
        line, expected = generate(random)
        path.write_bytes(start + line)
        if expected is None:
            with pytest.raises(DataError) as caught:
                load_records(path)
            assert caught.value.where == f"{path}:3"
            assert "\n" not in str(caught.value)
        else:
            check_line(load_records(path)[1], expected)


NAMES = ["prompt", "responses", "rewards", "chosen", "rejected", "role", "content", "tools", 1]
ATOMS: list[Any] = [None, True, 0, 1.5, float("nan"), 10**5000, "", "a", "\ud800", b"x", {1}]
ATOMS += [message("user", "q"), message("assistant", "x")]


def junk(random: Random, depth: int = 0) -> Any:
    """Any value of Python, with the names of real columns here and there."""
    kind = random.random()
    if depth > 3 or kind < 0.3:
        return random.choice(ATOMS)
    if kind < 0.6:
        return [junk(random, depth + 1) for _ in range(random.randint(0, 3))]
    keys = random.sample(NAMES, random.randint(0, 5))
    return {key: junk(random, depth + 1) for key in keys}


def test_junk_is_loaded_or_named() -> None:
    random = Random(seeds.shifted(3))
    good = {"prompt": "p", "responses": ["a"], "rewards": [1]}
    rows: list[Any] = [good]
    for _ in range(3000):
        row = junk(random)
        rows.append(good | row if isinstance(row, dict) and random.random() < 0.7 else [row])
    report = DataReport()
    records = load_records(rows, bad_rows="skip", report=report)
    places = [record.where for record in records]
    places += [note.split(": ")[0] for note in report.skipped]
    assert sorted(places) == sorted(f"row {number}" for number in range(len(rows)))


def test_a_damaged_byte_changes_nothing_silently(tmp_path: Path) -> None:
    """A line with a wrong byte is named, or means what any reader of JSON takes it for."""
    random = Random(seeds.shifted(4))
    row = {"prompt": "né and more", "responses": ["a text", "b text"], "rewards": [1.25, 3]}
    good = json.dumps(row, ensure_ascii=False).encode()
    lines = [good]
    for _ in range(3000):
        damaged = bytearray(good)
        damaged[random.randrange(1, len(good))] = random.randrange(11, 256)
        lines.append(bytes(damaged))
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = DataReport()
    records = load_records(path, bad_rows="skip", report=report)
    places = [record.where for record in records]
    places += [note.split(": ")[0] for note in report.skipped]
    assert sorted(places) == sorted(f"{path}:{number}" for number in range(1, len(lines) + 1))
    for record in records:
        plain = json.loads(lines[int(record.where.rsplit(":", 1)[1]) - 1])
        check_line(record, (plain["prompt"], plain["responses"], plain.get("rewards")))
    assert len(records) > 300


def test_a_damaged_parquet_file_is_named_or_unharmed(tmp_path: Path) -> None:
    random = Random(seeds.shifted(5))
    rows = [
        {"prompt": f"prompt {i % 7}", "responses": ["a" * i, "b"], "rewards": [i / 8, 0.0]}
        for i in range(60)
    ]
    path = tmp_path / "x.parquet"
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=20, write_page_checksum=True)
    data = path.read_bytes()
    named = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        report = DataReport()
        places: list[str] = []
        try:
            records = load_records(path, bad_rows="skip", report=report)
        except DataError as error:
            places = [error.where]
        if places:
            named += 1
            assert places[0].startswith(str(path))
        else:
            assert len(records) + len(report.skipped) == len(rows)
    assert 100 < named < 400


def test_each_record_is_tokenized_or_named() -> None:
    """A strict template, with prompts in every order of roles."""
    random = Random(seeds.shifted(6))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'tool' or "
        "(m['role'] == 'system' and not loop.first) %}{{ raise_exception('role') }}{% endif %}"
        "{{ '<u>' + m['content'] + '</s>' }}{% endfor %}"
    )
    records = load_records([good_row(random)[0] for _ in range(600)])
    report = DataReport()
    rows = tokenize_records(records, tokenizer, TokenizeOptions(), bad_rows="skip", report=report)
    places = [row.where for row in rows] + [note.split(": ")[0] for note in report.skipped]
    assert sorted(places) == sorted(record.where for record in records)
    refused = [
        record
        for record in records
        if isinstance(record.prompt, list)
        and any(
            turn["role"] == "tool" or (turn["role"] == "system" and position > 0)
            for position, turn in enumerate(record.prompt)
        )
    ]
    assert 50 < len(refused) == len(report.skipped)
