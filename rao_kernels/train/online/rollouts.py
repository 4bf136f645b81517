"""Rounds in files: what was sampled and scored in a round, one record per prompt.

``rollouts/round-00003.jsonl`` in the output folder has the format that `rao-kernels generate` and
`annotate` write, so that `rao-kernels train` reads it. The column `online` holds what a round that
is resumed needs beside it. Numbers in JSON keep every bit of an fp32 and an fp64.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data import Prompt
from ...errors import InputError
from ...refcache import write_atomic

FOLDER = "rollouts"
Lists = list[list[float]]


@dataclass(frozen=True)
class Rollout:
    """A prompt with the responses that the policy sampled to it.

    Lists per response; those of tokens have the gold answer's last, where there is one.

    rewards: without the gold answer's, which is gold_reward. unscored: None, or why one of them got
    no reward; rewards are then None, and the prompt is not learnt from. finished: False where a
    response was cut at the most tokens it may have. old_token_logps, ref_token_logps: under the
    policy that sampled, and under the reference; old_values: of its value head; None where the loss
    needs none.
    ref_prompt_logp: of the prompt after t0, under the reference. entropy: mean over the tokens of
    the responses.
    """

    prompt: Prompt
    prompt_ids: list[int]
    responses: list[str]
    response_ids: list[list[int]]
    rewards: list[float] | None
    finished: list[bool]
    where: str
    columns: dict[str, Any]
    gold_ids: list[int] | None = None
    gold_reward: float | None = None
    old_token_logps: Lists | None = None
    ref_token_logps: Lists | None = None
    ref_prompt_logp: float | None = None
    old_values: Lists | None = None
    entropy: float | None = None
    unscored: str | None = None

    def sequences(self) -> list[list[int]]:
        """Return the tokens of the responses, then of the gold answer."""
        return [*self.response_ids, *([] if self.gold_ids is None else [self.gold_ids])]

    def to_record(self) -> dict[str, Any]:
        """Return the record of a file."""
        names = ("prompt", "responses", "rewards", "finished", "prompt_ids", "response_ids")
        record = {name: getattr(self, name) for name in names}
        if self.old_token_logps is not None:
            record["old_logps"] = self.old_token_logps[: len(self.responses)]
        if self.gold_reward is not None:
            record["gold_reward"] = self.gold_reward
        kept = {name: value for name, value in self.columns.items() if name not in record}
        own = {name: getattr(self, name) for name in _ONLINE}
        return {**record, **kept, "online": own}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Rollout:
        """Read what `to_record` returned."""
        named = {field.name for field in dataclasses.fields(cls)} - {"columns", *_ONLINE}
        given = {name: record[name] for name in named if name in record}
        columns = {k: v for k, v in record.items() if k not in (*named, "old_logps", "online")}
        return cls(**given, **record["online"], columns=columns)


_ONLINE = (
    *("where", "gold_ids", "old_token_logps", "ref_token_logps", "ref_prompt_logp"),
    *("old_values", "entropy", "unscored"),
)


class RoundFiles:
    """The files of the rounds in an output folder."""

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / FOLDER

    def path(self, number: int) -> Path:
        return self.folder / f"round-{number:05d}.jsonl"

    def write(self, number: int, rollouts: Sequence[Rollout], shared: Mapping[str, Any]) -> None:
        """Write a round's file, whole or not at all; shared: columns of every record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({**one.to_record(), **shared}) for one in rollouts)
        write_atomic(self.path(number), "".join(f"{line}\n" for line in lines).encode())

    def read(self, number: int, expected: str | None = None) -> tuple[list[Rollout], str]:
        """Return a round and the SHA-256 of its file.

        expected: that SHA-256, where it is known.

        Raises:
            InputError: the file is not there, or not as it was.
        """
        path = self.path(number)
        needed = f"{path}, whose responses the steps up to the checkpoint were trained on"
        fix = "Put the file back, or resume from a checkpoint at the end of a round."
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError("resume_from_checkpoint", needed, error.strerror, fix) from error
        found = hashlib.sha256(content).hexdigest()
        if expected is not None and found != expected:
            raise InputError("resume_from_checkpoint", needed, "a file that was changed", fix)
        records = [json.loads(line) for line in content.decode().splitlines()]
        return [Rollout.from_record(record) for record in records], found
