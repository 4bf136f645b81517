"""Records with sampled responses, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..errors import InputError
from .interface import Sample, Sampler, SamplingOptions
from .prompts import PromptRow
from .scoring import sampled_logps
from .text import derived_seed


def refuse_responses(rows: Sequence[PromptRow]) -> None:
    """Raise if a record has responses, rewards or other columns that sampling would replace."""
    for row in rows:
        if row.replaced:
            raise InputError(
                "overwrite",
                "True for records that have responses already",
                f"False, and {row.record.where} has {', '.join(row.replaced)}",
                "With --overwrite new responses replace these columns; the others stay.",
            )


@dataclass(frozen=True)
class ResponseSampler:
    """Samples responses to batches of prompts, and makes the records that hold them.

    A batch's seed follows from `seed` and its number alone, so that batches may be sampled in any
    order and by any number of processes.

    sampler: samples the responses. options: how. seed: of all batches. generator: who samples, as
        JSON; each record holds it with the settings. logps_model: the model whose log-probs of the
        samples are kept, with the tokens, as `old_logps`; None: neither is kept.
    """

    sampler: Sampler
    options: SamplingOptions
    seed: int
    generator: dict[str, Any]
    logps_model: nn.Module | None = None

    def batch(
        self, number: int, rows: Sequence[PromptRow], prompts: Sequence[Sequence[int]]
    ) -> list[dict[str, Any]]:
        """Return the records of batch `number`: prompts with their token ids."""
        seed = derived_seed(self.seed, number)
        groups = self.sampler.sample(prompts, self.options, seed=seed)
        records = [self._record(*one) for one in zip(rows, groups, strict=True)]
        if self.logps_model is None:
            return records
        logps = sampled_logps(self.logps_model, prompts, groups, self.options.temperature)
        return [
            {
                **record,
                "prompt_ids": list(prompt),
                "response_ids": [one.ids for one in group],
                "old_logps": values,
            }
            for record, prompt, group, values in zip(records, prompts, groups, logps, strict=True)
        ]

    def _record(self, row: PromptRow, group: Sequence[Sample]) -> dict[str, Any]:
        settings = {k: v for k, v in asdict(self.options).items() if k != "responses"}
        return {
            **row.columns,
            "responses": [one.text for one in group],
            "finished": [one.finished for one in group],
            "generator": {**self.generator, **settings, "seed": self.seed, **self._of_logps()},
        }

    def _of_logps(self) -> dict[str, float]:
        """Return the temperature of `old_logps`, where these are kept."""
        return {} if self.logps_model is None else {"logp_temperature": self.options.temperature}
