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
from .prefix import check_shared_start, shared_start
from .record_source import Conversion, RecordSource
from .records import BadRows, DataReport, Record, SampledTokens, split_records
from .shapes import ShapeOptions
from .statistics import Statistics, Summary, dataset_statistics
from .store import JoinedRows, StoredRows, open_rows, store_rows
from .tokenize import PromptFormat, TokenizeOptions, iter_tokenized, tokenize_records
from .tokenized import TokenizedRow
from .transforms import as_pairs, drop_unlabelled, mark_preferred, pair_mismatched, with_gold

__all__ = [
    "LOSS_FIELDS",
    "MAX_REWARD",
    "ROLLOUT_FIELDS",
    "BadRows",
    "Collator",
    "Conversion",
    "DataReport",
    "Example",
    "JoinedRows",
    "Message",
    "PreferenceDataset",
    "Prompt",
    "PromptFormat",
    "Record",
    "RecordSource",
    "Reference",
    "Response",
    "SampledTokens",
    "ShapeOptions",
    "Statistics",
    "StoredRows",
    "Summary",
    "TokenizeOptions",
    "TokenizedRow",
    "as_pairs",
    "check_shared_start",
    "dataset_statistics",
    "drop_unlabelled",
    "first_prompts",
    "iter_raw",
    "iter_records",
    "iter_tokenized",
    "load_records",
    "mark_preferred",
    "open_rows",
    "pair_mismatched",
    "parse_record",
    "shared_start",
    "split_records",
    "store_rows",
    "tokenize_records",
    "unmet_needs",
    "with_gold",
]
