"""What is measured, as data: heads, suites of cases. `problems` makes their tensors.

Legend: N scored rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

OP = "log-probs"
FORWARD, BOTH, FROZEN = "forward", "both", "frozen"
DIRECTIONS = {
    FORWARD: "forward",
    BOTH: "forward and backward",
    FROZEN: "forward and backward, frozen head",
}


@dataclass(frozen=True)
class Head:
    """hidden size D, vocabulary V, and the softcap of its logits."""

    name: str
    size: int
    vocabulary: int
    softcap: float | None = None


LLAMA3 = Head("Llama 3 8B", 4096, 128256)
QWEN3 = Head("Qwen3 0.6B", 1024, 151936)
GEMMA2 = Head("Gemma 2 2B", 2304, 256000, softcap=30.0)
SMOLLM2 = Head("SmolLM2 135M", 576, 49152)
SQUARE = Head("", 1024, 65536)


@dataclass(frozen=True)
class Case:
    """One table of results.

    rows: N by device type. logits: "random" (flat, of an untrained head) or "probe" (real ones).
    task: `OP`, or a key of `rao_kernels.losses.LOSSES`: hidden states to loss and gradients.
    prompt: whether each response is preceded by a prompt as long as itself.
    """

    suite: str
    head: Head
    dtype: str
    rows: dict[str, int] = field(hash=False)
    logits: str = "random"
    task: str = OP
    prompt: bool = False
    directions: tuple[str, ...] = (FORWARD, BOTH)

    def name(self, device: str) -> str:
        """What rows of results call it; the dtype stands beside it."""
        head = f"{self.head.name}, " if self.head.name else ""
        shape = f"{head}N={self.rows[device]} D={self.head.size} V={self.head.vocabulary}"
        real = self.logits == "probe"
        if self.task == OP:
            return "probe (SmolLM2-135M, real text)" if real else f"{self.logits} {shape}"
        prompt = ", as many prompt rows" if self.prompt else ""
        return f"{self.task} {'real text, ' if real else ''}{shape}{prompt}"


PROBE = {"cpu": 2412, "cuda": 2412}
BIG = {"cpu": 256, "cuda": 8192}
LOSSES = ("rao", "sigmoid", "simpo", "grpo", "kto", "sft")


def _rows(count: int) -> dict[str, int]:
    return {"cpu": count, "cuda": count}


def _suites() -> Iterable[Case]:
    everything = (FORWARD, BOTH, FROZEN)
    yield Case("readme", SMOLLM2, "bf16", PROBE, logits="probe", directions=everything)
    yield Case("readme", SQUARE, "bf16", {"cpu": 1024, "cuda": 8192}, directions=(BOTH,))
    yield Case("readme", SMOLLM2, "fp32", PROBE, logits="probe", directions=(BOTH,))
    yield Case("readme", SQUARE, "fp32", {"cpu": 1024, "cuda": 8192}, directions=(BOTH,))
    for task in LOSSES:
        yield Case("readme", SMOLLM2, "bf16", _rows(1024), task=task, directions=(BOTH,))
    for task in LOSSES:
        yield Case(
            "real", SMOLLM2, "bf16", _rows(2048), logits="probe", task=task, directions=(BOTH,)
        )
    yield Case("heads", LLAMA3, "bf16", BIG, directions=everything)
    yield Case("heads", QWEN3, "bf16", {"cpu": 512, "cuda": 8192}, directions=everything)
    yield Case("heads", QWEN3, "fp32", {"cpu": 256, "cuda": 4096}, directions=(BOTH,))
    yield Case("heads", GEMMA2, "bf16", BIG, directions=everything)
    for task in LOSSES:
        yield Case(
            "prompts", SMOLLM2, "bf16", _rows(1024), task=task, prompt=True, directions=(BOTH,)
        )
    for rows in (64, 256, 1024, 4096):
        yield Case("rows", SMOLLM2, "bf16", {"cpu": rows, "cuda": 8 * rows}, directions=(BOTH,))
    for vocabulary in (32768, 65536, 131072, 262144):
        head = Head("", 1024, vocabulary)
        yield Case("vocabulary", head, "bf16", {"cpu": 512, "cuda": 8192}, directions=(BOTH,))


CASES = tuple(_suites())
SUITES = tuple(dict.fromkeys(case.suite for case in CASES))


def chosen(suites: Sequence[str], dtypes: Sequence[str], directions: Sequence[str]) -> list[Case]:
    """The cases of the suites, in the order of `CASES`, less other dtypes and directions."""
    found = [case for case in CASES if case.suite in suites and case.dtype in dtypes]
    return [
        replace(case, directions=tuple(one for one in case.directions if one in directions))
        for case in found
    ]
