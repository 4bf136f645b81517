"""t0 of RAO: the tokens that all prompts begin with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import DataError
from .encode import common_prefix
from .tokenized import TokenizedRow


def shared_start(rows: Iterable[TokenizedRow]) -> int:
    """Return the number of tokens that all prompts begin with: the longest t0 RAO can have.

    If prompts differ, none is t0 as a whole: the last token of the shortest one is left out, unless
    it is its only one. If all are the same prompt, that is t0, and nothing of it is scored.
    """
    start: list[int] | None = None
    shortest = longest = 0
    for row in rows:
        ids = row.prompt
        if start is None:
            start, shortest = ids.tolist(), len(ids)
        start = start[: common_prefix(start, ids[: len(start)].tolist())]
        shortest, longest = min(shortest, len(ids)), max(longest, len(ids))
    shared = len(start or ())
    return shared if shared == longest else min(shared, max(shortest - 1, 1))


def check_shared_start(rows: Iterable[TokenizedRow], prefix_length: int) -> None:
    """Raise unless all prompts begin with the same `prefix_length` tokens (t0 of RAO).

    rows: iterated twice if they do not.

    Raises:
        DataError: names the first prompt that begins otherwise than most.
    """
    starts = Counter(tuple(row.prompt[:prefix_length].tolist()) for row in rows)
    ((start, count),) = starts.most_common(1)
    if len(starts) == 1 and len(start) == prefix_length:
        return
    for row in rows:
        own = tuple(row.prompt[:prefix_length].tolist())
        if own != start or len(own) < prefix_length:
            raise DataError(
                row.where,
                f"its prompt begins with tokens {list(own)}, {count} of {starts.total()} prompts "
                f"with {list(start)}; RAO needs one t0 of {prefix_length} tokens for all",
                "Use a tokenizer with a BOS token, or prompt_format='chat'.",
            )
