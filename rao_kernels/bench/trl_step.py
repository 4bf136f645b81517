"""Measure a DPO step of TRL before and after ``rao_kernels.integrations.trl.enable()``.

A two-layer model under a head the size of SmolLM2's: nearly all of the step is the head.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from . import measure, plan
from .cases import BOTH, Head
from .problems import DTYPES
from .providers import BASELINE, Call, Outcome, products
from .record import Result

SUITE = "trl"
SECONDS = 90.0  # roughly, on two cores with AVX-512 BF16
WITHOUT, WITH = "TRL", "TRL + rao_kernels"


@dataclass(frozen=True)
class Size:
    """Pairs in a batch, tokens of a prompt and of an answer, the model's hidden size and vocabulary
    size."""

    pairs: int = 4
    prompt: int = 64
    answer: int = 128
    hidden: int = 576
    vocabulary: int = 49152
    heads: int = 9

    @property
    def scored(self) -> int:
        """Number of answer tokens, which alone are scored."""
        return 2 * self.pairs * self.answer

    @property
    def case(self) -> str:
        tokens = self.prompt + self.answer
        return (
            f"TRL DPO step, {2 * self.pairs} x {tokens} tokens, 2 layers, "
            f"D={self.hidden} V={self.vocabulary}"
        )


def _model(size: Size, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=2,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=1024,
        initializer_range=1 / size.hidden**0.5,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype)


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = {"<pad>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def _records(size: Size) -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(0)

    def text(count: int) -> str:
        ids = torch.randint(2, size.vocabulary, (count,), generator=generator)
        return " ".join(f"w{number}" for number in ids.tolist())

    answers = [(text(size.prompt), text(size.answer), text(size.answer)) for _ in range(size.pairs)]
    return [{"prompt": a, "chosen": f" {b}", "rejected": f" {c}"} for a, b, c in answers]


def _trainer(size: Size, dtype: torch.dtype, device: torch.device, folder: str) -> Any:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    config = DPOConfig(
        folder,
        per_device_train_batch_size=size.pairs,
        use_cpu=device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        max_length=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own, to TRL
        return DPOTrainer(
            _model(size, dtype),
            args=config,
            train_dataset=Dataset.from_list(_records(size)),
            processing_class=_tokenizer(size.vocabulary),
        )


def _step(trainer: Any, batch: dict[str, Tensor], *, enabled: bool) -> Outcome:
    """Return the loss of one batch and the gradient of the tied head, which is compared."""
    from ..integrations import trl

    (trl.enable if enabled else trl.disable)()
    try:
        trainer.model.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        return Outcome(loss.detach(), None, trainer.model.lm_head.weight.grad)
    finally:
        trl.disable()


def measured(
    rounds: int, device: torch.device, size: Size | None = None, dtype: str = "bf16"
) -> list[Result]:
    """Return the results of the bare GEMMs over the answer tokens, of the step before and after;
    "wrong" where the gradients differ by more than rounding."""
    size = size or Size()
    with tempfile.TemporaryDirectory(prefix="rao-bench-") as folder:
        trainer = _trainer(size, DTYPES[dtype], device, folder)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    steps = {name: partial(_step, trainer, batch, enabled=name == WITH) for name in (WITHOUT, WITH)}
    difference = _difference(steps[WITHOUT](), steps[WITH](), DTYPES[dtype])
    times = measure.interleaved({BASELINE: _products(size, dtype, device), **steps}, rounds)
    baseline = median(times[BASELINE])
    results = {}
    for name, seconds in times.items():
        spread = measure.spread(seconds)
        ratio = {"rounds": rounds, "ratio_to_gemms": spread["median_s"] / baseline}
        results[name] = _about(size, dtype, name) | spread | ratio
    for name, step in steps.items():
        results[name]["peak_extra_bytes"] = measure.peak_extra_bytes(step, device)
        if device.type == "cpu":
            results[name]["peak_rss_growth_bytes"] = measure.peak_rss_growth(step)
    results[WITH] |= difference
    return list(results.values())


def _products(size: Size, dtype: str, device: torch.device) -> Call:
    """Return the head's three bare GEMMs over the scored tokens."""
    head = Head("", size.hidden, size.vocabulary)
    shape = plan.Shape(size.scored, head, dtype)
    return products.as_called(plan.problem(shape, device), BOTH)


def _about(size: Size, dtype: str, name: str) -> Result:
    return {
        "suite": SUITE,
        "case": size.case,
        "task": "trainer",
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "N": size.scored,
        "D": size.hidden,
        "V": size.vocabulary,
        "direction": BOTH,
        "provider": name,
        "status": "ok",
    }


def _difference(before: Outcome, after: Outcome, dtype: torch.dtype) -> Result:
    """Compare the gradients; some roundings are allowed, for TRL rounds logits to the model's
    dtype."""
    assert before.dweight is not None and after.dweight is not None
    a, b = before.dweight.double(), after.dweight.double()
    off = float((a - b).norm() / a.norm())
    found: Result = {
        "gradient_difference": off,
        "loss_difference": float((before.value - after.value).abs()),
    }
    limit = 8 * torch.finfo(dtype).eps
    return found if off <= limit else found | {"status": "wrong", "reason": f"above {limit:.1e}"}
