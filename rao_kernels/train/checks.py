"""Checks that find mistakes before anything is loaded, tokenized or scored.

`check_arguments` and `check_objects` check the arguments of `RAOTrainer`, `check_rows` that the
model can read the tokenized records.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..data import TokenizedRow
from ..errors import InputError
from ..losses import LossInputs
from . import checkpoints
from .config import RAOConfig, RunConfig, check_runnable

_FOR_METRICS = "it serves compute_metrics, which RAOTrainer does not take: there are no logits"
_FULL_EVAL = "it rounds the weights of the policy; the reference was scored without rounding them"

# Arguments of transformers that RAOTrainer would ignore, or that would make its results wrong:
# name -> values that are fine, why others are not and what to do.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": (
        (0, 0.0),
        "it is read with labels and logits alone. Losses that have label_smoothing take it in "
        "loss_kwargs",
    ),
    "train_sampling_strategy": (
        ("random", "sequential"),
        "a record is a prompt with all its responses, and has no single length",
    ),
    "average_tokens_across_devices": (
        (True,),
        "the loss is always the mean over the units of all devices",
    ),
    "label_names": ((None,), "a batch has no labels"),
    "include_for_metrics": (([],), _FOR_METRICS),
    "batch_eval_metrics": ((False,), _FOR_METRICS),
    "bf16_full_eval": ((False,), _FULL_EVAL),
    "fp16_full_eval": ((False,), _FULL_EVAL),
    "parallelism_config": (
        (None,),
        "sequences are not split over devices. Use DDP, DeepSpeed ZeRO or FSDP",
    ),
    "accelerator_config.split_batches": (
        (False,),
        "per_device_train_batch_size counts the prompts of one device",
    ),
    "accelerator_config.dispatch_batches": (
        (None, False),
        "it cuts a batch between the responses of a prompt",
    ),
    "accelerator_config.even_batches": (
        (True,),
        "ranks would run different numbers of steps and wait for each other. Prompts "
        "that are repeated to fill a batch are not counted",
    ),
}


# Ranges of arguments that transformers does not check: name -> lowest value, whether that is
# excluded, and the highest, excluded.
_RANGES: dict[str, tuple[float, bool, float]] = {
    "per_device_train_batch_size": (1, False, math.inf),
    "per_device_eval_batch_size": (1, False, math.inf),
    "gradient_accumulation_steps": (1, False, math.inf),
    "num_train_epochs": (0, True, math.inf),
    "max_grad_norm": (0, False, math.inf),
    "weight_decay": (0, False, math.inf),
    "adam_beta1": (0, False, 1),
    "adam_beta2": (0, False, 1),
    "adam_epsilon": (0, True, math.inf),
    "dataloader_num_workers": (0, False, math.inf),
}


def check_arguments(args: TrainingArguments, *, rollouts: bool = False) -> None:
    """Raise for settings that would otherwise fail only after the data was scored.

    rollouts: True where the model in training samples the responses.
    """
    if not isinstance(args, RAOConfig):
        fix = "RAOConfig takes all that TrainingArguments takes."
        raise InputError("args", "an RAOConfig", type(args).__name__, fix)
    check_run_arguments(args)
    check_runnable(args, rollouts=rollouts)
    check_hyperparameters(args)


def check_run_arguments(args: RunConfig) -> None:
    """Raise for settings that no trainer here can follow."""
    for name, (allowed, why) in _REFUSED.items():
        value: Any = args
        for part in name.split("."):
            value = getattr(value, part)
        if value not in allowed:
            raise InputError(name, " or ".join(map(repr, allowed)), repr(value), f"Why: {why}.")
    for name, (low, excluded, high) in _RANGES.items():
        number = getattr(args, name)
        if not (low < number < high if excluded else low <= number < high):
            expected = f"a number {'above' if excluded else 'of at least'} {low:g}"
            expected += f" and below {high:g}" if high < math.inf else ""
            raise InputError(name, expected, number)
    if args.n_gpu > 1:
        raise InputError(
            "args",
            "one process per GPU",
            f"{args.n_gpu} GPUs in one process (nn.DataParallel)",
            f"Start with `torchrun --nproc_per_node {args.n_gpu} ...`, or set "
            "CUDA_VISIBLE_DEVICES to one GPU.",
        )
    _check_sharding(args)
    _check_checkpoint(args)


def check_objects(model: Any, ref_model: Any, processing_class: Any) -> None:
    """Raise if an argument of `RAOTrainer` has another type than documented."""
    loadable = (str, os.PathLike, nn.Module)
    expected = "a model, or the name or folder of one"
    if not isinstance(model, loadable):
        raise InputError("model", expected, type(model).__name__)
    if ref_model is not None and not isinstance(ref_model, loadable):
        fix = "Arguments are model, ref_model, args."
        raise InputError("ref_model", f"None, {expected}", type(ref_model).__name__, fix)
    if processing_class is not None and not isinstance(processing_class, PreTrainedTokenizerBase):
        fix = "Pass AutoTokenizer.from_pretrained(...), or the `tokenizer` of a processor."
        raise InputError("processing_class", "a tokenizer", type(processing_class).__name__, fix)


def check_hyperparameters(args: RAOConfig) -> None:
    """Compute the loss once on four short responses, since each loss checks its own ranges."""
    hyper = args.hyperparameters()
    given = ", ".join(f"{name}={value!r}" for name, value in hyper.items())
    expected = f"hyperparameters with which the loss {args.loss!r} can be computed"
    try:
        with warnings.catch_warnings():
            # Warnings are about the rewards, and these are only examples.
            warnings.simplefilter("ignore")
            loss = args.spec(_example_inputs(args), **hyper).loss
    except InputError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise InputError("loss_kwargs", expected, f"{given} ({error})") from error
    if not bool(loss.isfinite()):
        raise InputError("loss_kwargs", expected, f"{given}, which give {float(loss)}")


def check_rows(
    rows: Sequence[TokenizedRow],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Raise if `model` has no embedding for a token of the data, for padding or for a position.

    Warn if records are longer than the model was made for.
    """
    _check_tokens(rows, model, tokenizer)
    limit = getattr(_text_config(model), "max_position_embeddings", None)
    longest = max(rows, key=_length)
    if limit is None or _length(longest) <= limit:
        return
    found = f"{longest.where} with {_length(longest)} tokens"
    if _has_position_table(model, limit):
        fix = f"Pass max_length={limit}."
        expected = f"at most {limit}, the positions that the model has"
        raise InputError("max_length", expected, f"{max_length}, and {found}", fix)
    warnings.warn(
        f"{found}: the model was made for at most {limit} (max_position_embeddings); "
        f"max_length={limit} leaves longer ones out",
        stacklevel=2,
    )


def _check_checkpoint(args: RunConfig) -> None:
    asked = args.resume_from_checkpoint
    if asked is not None and asked.lower() not in ("true", "auto"):
        checkpoints.find(asked, Path(str(args.output_dir)))


def _check_sharding(args: RunConfig) -> None:
    """Raise for FSDP on a CPU, which would not shard; warn of ZeRO-3 that would save no weights."""
    if args.fsdp and args.device.type == "cpu":
        fix = "Without fsdp each process trains the whole model (DDP)."
        raise InputError("fsdp", "None on a CPU, where accelerate runs DDP instead", args.fsdp, fix)
    plugin = args.deepspeed_plugin
    zero = {} if plugin is None else plugin.deepspeed_config.get("zero_optimization", {})
    gather = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gather) is not True:
        warnings.warn(
            f"DeepSpeed ZeRO-3 without {gather}: save_model writes the ranks' shards and no "
            f'model.safetensors. Set "zero_optimization": {{"{gather}": true}}, or join the shards '
            "with the zero_to_fp32.py that DeepSpeed leaves beside them",
            stacklevel=2,
        )


def _check_tokens(
    rows: Sequence[TokenizedRow], model: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    embeddings = model.get_input_embeddings()
    size = getattr(embeddings, "num_embeddings", None) or len(embeddings.weight)
    largest = max(rows, key=_largest_id)
    found = {f"in {largest.where}": _largest_id(largest), "for padding": tokenizer.pad_token_id}
    for where, token in found.items():
        if token is not None and token >= size:
            raise InputError(
                "processing_class",
                f"a tokenizer of this model, which has {size} embeddings",
                f"token {token} {where}, from a tokenizer of {len(tokenizer)} tokens",
                "Use the model's own tokenizer, or call model.resize_token_embeddings first.",
            )


def _has_position_table(model: Any, limit: int) -> bool:
    """Return whether positions come from a table, as in GPT-2, OPT and GPT-J, or are computed."""
    embeddings = model.get_input_embeddings()
    # Some tables, such as OPT's, begin with two vectors for padding.
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not embeddings)
    learnt = any(limit <= table.num_embeddings <= limit + 2 for table in tables)
    return learnt or any(name.endswith("embed_positions") for name, _ in model.named_buffers())


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _length(row: TokenizedRow) -> int:
    return len(row.prompt) + max(map(len, row.responses))


def _largest_id(row: TokenizedRow) -> int:
    return max(int(ids.max()) for ids in (row.prompt, *row.responses) if len(ids))


def _example_inputs(args: RAOConfig) -> LossInputs:
    """Make inputs for any loss: two prompts with responses of two tokens each.

    There are two responses to a prompt, and a third one if the loss needs a gold answer. Rewards
    are in [0, 1]. There are no advantages: losses take them from the rewards, as in training; but
    for PPO, which needs them.
    """
    needs = args.spec.required_inputs(args.hyperparameters())
    count = 3 if "gold" in needs else 2
    sequences = torch.arange(2 * count)
    segments = sequences.repeat_interleave(2)
    tokens = torch.linspace(-1.2, -0.1, len(segments))
    sums = torch.linspace(-2.1, -0.3, len(sequences))
    place, groups = sequences % count, sequences // count
    rewards = torch.tensor([1.0, 0.0, 0.75, 0.25, 0.5, 1.0])[: len(sequences)]
    return LossInputs(
        token_logps=tokens,
        segments=segments,
        num_sequences=len(sequences),
        ref_token_logps=tokens - 0.1,
        ref_logps=sums,
        old_token_logps=tokens - 0.1 if "old_token_logps" in needs else None,
        prompt_logps=sums,
        ref_prompt_logps=sums - 0.1,
        rewards=rewards,
        advantages=rewards[segments] if "advantages" in needs else None,
        groups=groups,
        preferred=place != 1,
        values=rewards,
        returns=rewards[segments],
        old_values=rewards[segments],
        gold=place == 2 if "gold" in needs else place == 0,
        kl_logps=sums,
        ref_kl_logps=sums - 0.1,
        reward_ensemble=rewards.expand(2, len(rewards)),
        ref_rewards=rewards,
        ref_reward_groups=groups,
        token_entropy=-tokens,
        token_log_sum_sq=tokens,
    )
