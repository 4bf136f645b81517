"""Preference data: from files and datasets to checked records, token ids and micro-batches."""

from .collate import (
    LOSS_FIELDS,
    ROLLOUT_FIELDS,
    Collator,
    Example,
    PreferenceDataset,
    Reference,
    first_prompts,
    unmet_needs,
)
from .load import iter_raw, iter_records, load_records, parse_record
from .messages import Message, Prompt, Response
from .numbers import MAX_REWARD
from .records import BadRows, DataReport, Record, SampledTokens, split_records
from .shapes import ShapeOptions
from .tokenize import (
    PromptFormat,
    TokenizedRow,
    TokenizeOptions,
    as_pairs,
    check_shared_start,
    drop_unlabelled,
    mark_preferred,
    shared_start,
    tokenize_records,
)

__all__ = [
    "LOSS_FIELDS",
    "MAX_REWARD",
    "ROLLOUT_FIELDS",
    "BadRows",
    "Collator",
    "DataReport",
    "Example",
    "Message",
    "PreferenceDataset",
    "Prompt",
    "PromptFormat",
    "Record",
    "Reference",
    "Response",
    "SampledTokens",
    "ShapeOptions",
    "TokenizeOptions",
    "TokenizedRow",
    "as_pairs",
    "check_shared_start",
    "drop_unlabelled",
    "first_prompts",
    "iter_raw",
    "iter_records",
    "load_records",
    "mark_preferred",
    "parse_record",
    "shared_start",
    "split_records",
    "tokenize_records",
    "unmet_needs",
]
