"""The cases as data: heads, losses, suites. `problems` makes their tensors.

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
PRODUCTS = {FORWARD: 1, BOTH: 3, FROZEN: 2}
SUFFIXES = {FORWARD: ", forward", BOTH: "", FROZEN: ", frozen head"}
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
# Keys of `rao_kernels.losses.LOSSES` and their names here.
LOSSES = {
    "rao": "RAO",
    "sigmoid": "DPO",
    "simpo": "SimPO",
    "grpo": "GRPO",
    "kto": "KTO",
    "sft": "SFT",
}
# Seconds of a case with all providers on two cores with AVX-512 BF16: their processes, and all
# their calls per 10^9 operations of the bare products.
START_S, S_PER_GFLOP = 45.0, {"bf16": 0.3, "fp32": 0.5}


@dataclass(frozen=True)
class Head:
    """A language-model head: hidden size D, vocabulary size V, and the softcap of its logits."""

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

    rows: N by device type. logits: "random" (flat, of an untrained head), "peaked" (see `peaked`)
    or "real" (SmolLM2's on preference data). task: `OP`, or a key of `LOSSES`: hidden states to
    loss and gradients. prompt: each response follows a prompt as long as itself.
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
        """Return the field `case` of its results."""
        head = f"{self.head.name}, " if self.head.name else ""
        shape = f"{head}N={self.rows[device]} D={self.head.size} V={self.head.vocabulary}"
        real = self.logits == "real"
        if self.task == OP:
            return f"real text, {self.head.name}" if real else f"{self.logits} {shape}"
        prompt = ", as many prompt rows" if self.prompt else ""
        return f"{LOSSES[self.task]}, {'real text, ' if real else ''}{shape}{prompt}"

    def label(self, device: str, direction: str) -> str:
        """Return name, dtype and direction, as tables show them and ``--cases`` finds them."""
        return label(self.name(device), DTYPES[self.dtype], direction)

    def seconds(self, direction: str) -> float:
        """Return a rough time of the case with all providers, on two cores with AVX-512 BF16."""
        products = 2e-9 * self.rows["cpu"] * self.head.size * self.head.vocabulary
        return START_S + S_PER_GFLOP[self.dtype] * PRODUCTS[direction] * products


def minutes(seconds: float) -> str:
    """Return whole minutes, rounded up, with their unit."""
    return f"{-int(-seconds // 60)} min"


def label(name: str, dtype: str, direction: str) -> str:
    """Return a case and direction in one line; dtype as torch spells it."""
    short = {long: short for short, long in DTYPES.items()}
    return f"{name}, {short.get(dtype, dtype)}{SUFFIXES[direction]}"


REAL = {"cpu": 2412, "cuda": 2412}
BIG = {"cpu": 256, "cuda": 8192}


def _rows(count: int) -> dict[str, int]:
    return {"cpu": count, "cuda": count}


def _suites() -> Iterable[Case]:
    everything = (FORWARD, BOTH, FROZEN)
    yield Case("readme", SMOLLM2, "bf16", REAL, logits="real", directions=everything)
    yield Case("readme", SQUARE, "bf16", {"cpu": 1024, "cuda": 8192}, directions=(BOTH,))
    yield Case("readme", SMOLLM2, "fp32", REAL, logits="real", directions=(BOTH,))
    yield Case("readme", SQUARE, "fp32", {"cpu": 1024, "cuda": 8192}, directions=(BOTH,))
    for task in LOSSES:
        yield Case("readme", SMOLLM2, "bf16", _rows(1024), task=task, directions=(BOTH,))
    for task in LOSSES:
        yield Case(
            "real", SMOLLM2, "bf16", _rows(2048), logits="real", task=task, directions=(BOTH,)
        )
    yield Case("heads", LLAMA3, "bf16", BIG, directions=everything)
    yield Case("heads", LLAMA3, "bf16", BIG, logits="peaked", directions=(BOTH,))
    yield Case("heads", LLAMA3, "bf16", BIG, task="sft", directions=(BOTH,))
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


@dataclass(frozen=True)
class Choice:
    """The suites, dtypes and directions asked for. parts: of labels; none: all labels.

    directions: in the order they run in.
    """

    suites: Sequence[str]
    dtypes: Sequence[str] = tuple(DTYPES)
    directions: Sequence[str] = tuple(DIRECTIONS)
    parts: Sequence[str] = ()

    def has(self, name: str) -> bool:
        """Return True if the name contains one of the parts."""
        return not self.parts or any(part.lower() in name.lower() for part in self.parts)

    def cases(self, device: str) -> list[Case]:
        """Return the chosen cases in the order of `CASES`, each with its chosen directions in
        theirs."""
        found = []
        for case in CASES:
            if case.suite in self.suites and case.dtype in self.dtypes:
                names = {one: case.label(device, one) for one in case.directions}
                asked = (one for one in self.directions if one in names and self.has(names[one]))
                found.append(replace(case, directions=tuple(asked)))
        return [case for case in found if case.directions]
