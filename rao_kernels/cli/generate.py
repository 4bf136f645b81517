"""`rao-kernels generate`: sample responses to the prompts of records.

Each record of the output is one of the data with `responses`, `finished` and `generator`; the next
commands read it as it is. The same command goes on with an output that it left unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..data import DataReport, PromptFormat, RecordSource
from ..data.appending import ResumableOutput
from ..errors import InputError
from ..generation import (
    Engine,
    PromptRow,
    ResponseSampler,
    make_sampler,
    prompt_ids,
    read_prompts,
    refuse_responses,
)
from ..generation.text import check_sampling, check_seed
from ..refcache import model_fingerprint, template_fingerprint, tokenizer_fingerprint
from ..train.model import load_model, load_tokenizer
from .options import option, parse_options
from .sampling_options import SamplingArguments, default_device
from .shape_options import ShapeArguments


@dataclass
class GenerateArguments:
    """The model, the prompts and the output of `rao-kernels generate`."""

    model: str = field(metadata={"help": "Folder or name of the model."})
    data: list[str] = field(
        metadata={"help": "Files of records with prompts (.jsonl, .jsonl.gz, .parquet)."}
    )
    output: str = field(metadata={"help": "File of the records with responses (.jsonl)."})
    responses: int = option(4, "Responses to each prompt.")
    seed: int = option(0, "Of the random numbers; the same command gives the same responses.")
    limit: int | None = option(None, "Use the first so many records of the data.")
    prompt_format: PromptFormat = option(
        "auto",
        "A text prompt as a user turn of the chat template, or plain after BOS; 'auto': chat if "
        "the tokenizer has a template.",
    )
    overwrite: bool = option(
        False, "Replace the responses and rewards of records that have them; else refuse these."
    )
    old_logps: bool = option(
        False,
        "Keep the tokens of prompt and responses and their log-probs at this temperature, which "
        "policy-gradient losses such as grpo need.",
    )
    engine: Engine = option("transformers", "What samples: transformers, or vLLM if installed.")
    dtype: Literal["float32", "bfloat16"] = option("float32", "Dtype of the weights.")


TYPES = [GenerateArguments, ShapeArguments, SamplingArguments]


def run(argv: Sequence[str]) -> None:
    """Parse the options, sample what the output lacks, and say where it is."""
    arguments, shapes, sampling = parse_options("rao-kernels generate", TYPES, argv)
    if arguments.old_logps and arguments.engine == "vllm":
        expected = "'transformers' with --old_logps, which need the model's own forward"
        raise InputError("engine", expected, "'vllm'")
    if arguments.old_logps and not sampling.temperature > 0:
        expected = "a number above 0 with --old_logps"
        raise InputError("temperature", expected, sampling.temperature)
    report = DataReport()
    source = RecordSource(arguments.data, shapes.options(), arguments.limit)
    rows = read_prompts(source, report=report)
    print(f"data: {report.describe()}")
    if not arguments.overwrite:
        refuse_responses(rows)
    tokenizer = load_tokenizer(arguments.model)
    prompts = [prompt_ids(row.record, tokenizer, arguments.prompt_format) for row in rows]
    options = sampling.sampling(arguments.responses)
    check_sampling(prompts, options)
    check_seed(arguments.seed)
    model = _load(arguments)
    given: Any = arguments.model if model is None else model
    engine = make_sampler(arguments.engine, given, tokenizer, dtype=arguments.dtype)
    # Of all prompts, before the first is sampled.
    engine.check(prompts, options)
    identity = _identity(arguments, sampling, rows, tokenizer, model)
    sampler = ResponseSampler(
        engine,
        options,
        arguments.seed,
        {"model": arguments.model, "engine": arguments.engine, "dtype": arguments.dtype},
        logps_model=model if arguments.old_logps else None,
    )
    with ResumableOutput(arguments.output, identity) as output:
        try:
            _fill(output, sampler, rows, prompts)
        except KeyboardInterrupt:
            done = f"{output.done} of {len(rows)} records are in {arguments.output}"
            raise KeyboardInterrupt(f"{done}; the same command goes on") from None
    print(f"{len(rows)} records, with {arguments.responses} responses each: {arguments.output}")


def _fill(
    output: ResumableOutput,
    sampler: ResponseSampler,
    rows: Sequence[PromptRow],
    prompts: Sequence[Sequence[int]],
) -> None:
    """Sample the batches that `output` lacks; of one that it has in part, append the rest."""
    size = sampler.options.batch_size
    with tqdm(total=len(rows), initial=output.done, desc="generate", unit="prompt") as bar:
        while output.done < len(rows):
            number, known = divmod(output.done, size)
            part = slice(number * size, (number + 1) * size)
            records = sampler.batch(number, rows[part], prompts[part])[known:]
            output.write(records)
            bar.update(len(records))


def _load(arguments: GenerateArguments) -> nn.Module | None:
    """Load the model; None if the engine loads it."""
    if arguments.engine != "transformers":
        return None
    model = load_model(arguments.model, getattr(torch, arguments.dtype))
    return model.to(default_device()).requires_grad_(False)


def _identity(
    arguments: GenerateArguments,
    sampling: SamplingArguments,
    rows: Sequence[PromptRow],
    tokenizer: Any,
    model: nn.Module | None,
) -> dict[str, Any]:
    """Return what the output depends on."""
    names = ("model", "responses", "seed", "prompt_format", "old_logps", "engine", "dtype")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.columns, sort_keys=True, default=str).encode())
    return {
        "command": "generate",
        **{name: getattr(arguments, name) for name in names},
        **asdict(sampling),
        "sha256 of the model": _of_files(arguments.model)
        if model is None
        else model_fingerprint(model),
        "sha256 of the tokenizer": tokenizer_fingerprint(tokenizer),
        "sha256 of the template": template_fingerprint(tokenizer),
        "sha256 of the prompts": digest.hexdigest(),
    }


def _of_files(model: str) -> str | None:
    """Return the SHA-256 of the weights in a folder; of a name on the hub its commit."""
    folder = Path(model)
    if not folder.is_dir():
        commit: str | None = getattr(AutoConfig.from_pretrained(model), "_commit_hash", None)
        return commit
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
