"""Statistics of tokenized records before training: rewards, and lengths in tokens."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .records import DataReport
from .tokenized import TokenizedRow


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (of the population) and quartiles of numbers.

    Quartiles are values that occur: those whose rank is nearest.
    """

    count: int
    mean: float
    sd: float
    minimum: float
    quartile_1: float
    median: float
    quartile_3: float
    maximum: float

    def __str__(self) -> str:
        quartiles = (self.minimum, self.quartile_1, self.median, self.quartile_3, self.maximum)
        spread = ", ".join(f"{value:.6g}" for value in quartiles)
        return f"mean {self.mean:.6g}, sd {self.sd:.6g}; min, quartiles, max {spread}"


@dataclass(frozen=True)
class Statistics:
    """What `dataset_statistics` finds.

    prompt_tokens, response_tokens: lengths of the records that are trained on.
    rewards: None where no record has any.
    equal_rewards: share of the records with several scored responses whose rewards are all equal;
        None where there is no such record.
    truncated, dropped: shares of the responses that were read that were cut, and left out, since
        they do not fit max_length; None without a report.
    """

    prompt_tokens: Summary | None
    response_tokens: Summary | None
    rewards: Summary | None
    equal_rewards: float | None
    truncated: float | None = None
    dropped: float | None = None

    def named(self) -> Iterator[tuple[str, str]]:
        """Yield names and texts of the statistics that are known, for a table."""
        for name, summary in self._summaries():
            yield name, str(summary)
        if self.equal_rewards is not None:
            yield "prompts whose rewards are all equal", f"{self.equal_rewards:.1%}"

    def describe(self) -> str:
        """Return the statistics as lines for the log."""
        lines = [f"{name}: {summary}" for name, summary in self._summaries()]
        shares = {
            "of the prompts have equal rewards": self.equal_rewards,
            "of the responses are cut": self.truncated,
            "of the responses are left out": self.dropped,
        }
        found = [f"{share:.1%} {what}" for what, share in shares.items() if share]
        return "\n".join([*lines, *([", ".join(found)] if found else [])])

    def _summaries(self) -> Iterator[tuple[str, Summary]]:
        known = {
            "prompt tokens": self.prompt_tokens,
            "response tokens": self.response_tokens,
            "rewards": self.rewards,
        }
        yield from ((name, one) for name, one in known.items() if one is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics by name, each summary as a dict, for JSON."""
        return dataclasses.asdict(self)


def dataset_statistics(
    rows: Iterable[TokenizedRow], report: DataReport | None = None
) -> Statistics:
    """Return statistics of rewards and lengths, in one pass over the records.

    Eight bytes are kept of each number, so that quartiles are exact.

    Args:
        rows: tokenized records.
        report: of their tokenization, for the shares of responses that do not fit.
    """
    prompts, responses, rewards = array("d"), array("d"), array("d")
    several = equal = 0
    for row in rows:
        prompts.append(len(row.prompt))
        responses.extend(map(len, row.responses))
        scores = row.rewards or []
        rewards.extend(scores)
        several += len(scores) > 1
        equal += len(scores) > 1 and len(set(scores)) == 1
    given = 0 if report is None else report.responses + report.responses_dropped
    return Statistics(
        _summary(prompts),
        _summary(responses),
        _summary(rewards),
        equal / several if several else None,
        report.responses_truncated / given if report is not None and given else None,
        report.responses_dropped / given if report is not None and given else None,
    )


def _summary(numbers: array[float]) -> Summary | None:
    if not numbers:
        return None
    values = torch.frombuffer(numbers, dtype=torch.float64).sort().values
    ranks = torch.linspace(0, len(values) - 1, 5, dtype=torch.float64).round().long()
    quartiles: list[float] = values[ranks].tolist()
    sd, mean = torch.std_mean(values, correction=0)
    return Summary(len(values), float(mean), float(sd), *quartiles)
