"""Prepares a file of records on disk, then in memory; prints the growth of the peak memory of each.

Run by test_streaming.py in its own process, whose peak is not that of other tests. A token is a
byte, so that no tokenizer's own memory and time are measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rao_kernels.train import RAOConfig
from rao_kernels.train.prepare import prepare_training

RECORDS, LETTERS = 2400, 7_500


class Bytes:
    """What is used of a tokenizer."""

    bos_token_id, eos_token_id, chat_template = 256, 257, None
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


def forget_peak() -> int:
    """Set the peak of the process's memory to what it takes now, in bytes, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    # Not of `getrusage`, whose peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def write(path: Path, records: int) -> Path:
    with path.open("w") as file:
        for number in range(records):
            texts = [chr(97 + (number + j) % 26) * LETTERS for j in range(2)]
            row = {"prompt": f"ask {number}", "responses": texts, "rewards": [0.0, 1.0]}
            file.write(json.dumps(row) + "\n")
    return path


def main(folder: Path) -> None:
    path = write(folder / "records.jsonl", RECORDS)
    few = write(folder / "few.jsonl", 2)
    given: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "max_length": 1 << 20,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    tokenizer: Any = Bytes()
    # What is imported and allocated once is none of the data's.
    prepare_training(few, RAOConfig(**given, streaming=True), tokenizer)
    grown = {}
    for streaming in (True, False):
        before = forget_peak()
        config = RAOConfig(**given, streaming=streaming)
        dataset = prepare_training(path, config, tokenizer)
        assert dataset is not None and len(dataset) == RECORDS
        grown[streaming] = peak_bytes() - before
    print(json.dumps({"disk": grown[True], "memory": grown[False]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
