"""The fused entries against dense log-probs in fp64, and the rows they project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rao_kernels import (
    SequenceBatch,
    fused_loss,
    rao_loss,
    sequence_and_prompt_logps,
    sequence_logps,
)
from rao_kernels.engine import record_work
from rao_kernels.errors import InputError
from rao_kernels.losses import LOSSES, LossInputs
from rao_kernels.types import LossOutput

from . import seeds

V, D = 37, 8
PROMPTS = [[1, 4, 5, 6], [1, 7], [1, 8, 9]]
GROUPS = [1, 0, 1, 2, 2, 0]
RESPONSES = [[10, 11], [12, 13, 14], [15], [], [16, 17, 18, 19], [20, 21]]
TOKENS = [PROMPTS[g] + r for g, r in zip(GROUPS, RESPONSES, strict=True)]
RESPONSE_ROWS = sum(map(len, RESPONSES))
PROMPT_ROWS = sum(len(p) - 1 for p in PROMPTS)


@dataclass
class Case:
    """Sequences in one layout; `hidden_of` cuts the same hidden states to it."""

    batch: SequenceBatch
    hidden: Tensor
    weight: Tensor
    starts: list[int]

    def rows(self) -> Tensor:
        """Flat hidden states of the real tokens, sequence after sequence."""
        flat = self.hidden.reshape(-1, D)
        where = [s + i for s, t in zip(self.starts, TOKENS, strict=True) for i in range(len(t))]
        return flat[where]


def make(layout: str, dtype: torch.dtype = torch.float64) -> Case:
    generator = seeds.generator(1)
    sizes = [len(t) for t in TOKENS]
    states = torch.randn(sum(sizes), D, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    masks = [[0] * (len(t) - len(r)) + [1] * len(r) for t, r in zip(TOKENS, RESPONSES, strict=True)]
    groups = torch.tensor(GROUPS)
    if layout == "packed":
        edges = torch.tensor([0, *sizes]).cumsum(0)
        ids = torch.tensor([token for t in TOKENS for token in t])
        mask = torch.tensor([own for m in masks for own in m])
        batch = SequenceBatch.from_packed(ids, mask, edges, groups=groups)
        return Case(batch, states.requires_grad_(), weight.requires_grad_(), edges[:-1].tolist())
    width = max(sizes) + 1
    ids, mask = torch.zeros(len(sizes), width, dtype=torch.int64), torch.zeros(len(sizes), width)
    attention = torch.zeros(len(sizes), width)
    # What stands at padding must not matter.
    hidden = torch.full((len(sizes), width, D), 1e3, dtype=dtype)
    starts, done = [], 0
    for row, size in enumerate(sizes):
        start = width - size if layout == "left" else 0
        ids[row, start : start + size] = torch.tensor(TOKENS[row])
        mask[row, start : start + size] = torch.tensor(masks[row]).float()
        attention[row, start : start + size] = 1
        hidden[row, start : start + size] = states[done : done + size]
        starts.append(row * width + start)
        done += size
    batch = SequenceBatch.from_padded(ids, mask, attention, groups=groups)
    return Case(batch, hidden.requires_grad_(), weight.requires_grad_(), starts)


def dense_logps(hidden: Tensor, weight: Tensor, batch: SequenceBatch) -> Tensor:
    """Token log-probs per position, as a trainer has them: the whole vocabulary's softmax."""
    every = torch.log_softmax(hidden @ weight.T, dim=-1)
    return every.gather(-1, batch.logp_targets.clamp(min=0)[..., None])[..., 0]


def loop(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probability of each response and each prompt, one sequence after another."""
    found, prompts, rows = [], {}, iter(case.rows())
    for tokens, answer, group in zip(TOKENS, RESPONSES, GROUPS, strict=True):
        states = torch.stack([next(rows) for _ in tokens])
        every = torch.log_softmax(states @ case.weight.T, dim=-1)
        split = len(tokens) - len(answer)
        each = [every[i - 1, tokens[i]] for i in range(1, len(tokens))]
        zero = every.new_zeros(())
        found.append(sum(each[split - 1 :], zero))
        prompts.setdefault(group, sum(each[: split - 1], zero))
    return found, [prompts[g] for g in GROUPS]


def constants(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = seeds.generator(2)
    names = ("rewards", "ref_logps", "ref_prompt_logps")
    return {n: torch.randn(6, generator=generator, dtype=torch.float64).to(dtype) for n in names}


LAYOUTS = ["right", "left", "packed"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
PREFERRED = torch.tensor([True, False, False, False, True, True])


def test_sequence_logps_of_every_layout_equal_a_loop() -> None:
    for layout in LAYOUTS:
        case = make(layout)
        found, prompts = sequence_and_prompt_logps(case.hidden, case.weight, case.batch)
        assert not prompts.requires_grad
        expected, expected_prompts = loop(case)
        torch.testing.assert_close(found, torch.stack(expected))
        torch.testing.assert_close(prompts, torch.stack(expected_prompts))
        assert torch.equal(found, sequence_logps(case.hidden, case.weight, case.batch))
        g = torch.randn(6, dtype=torch.float64)
        wanted = [case.hidden, case.weight]
        got = torch.autograd.grad((found * g).sum(), wanted)
        exact = torch.autograd.grad((torch.stack(expected) * g).sum(), wanted)
        torch.testing.assert_close(got, exact)


@layouts
@pytest.mark.parametrize("term", ["detached", "none", "grad", "eq7_literal"])
def test_rao_equals_the_trainer_path(layout: str, term: str) -> None:
    case, given = make(layout), constants()
    hyper: dict[str, Any] = {"beta": 0.2, "log_z0": 1.5, "prompt_term": term}
    out = rao_loss(case.hidden, case.weight, case.batch, **given, **hyper)
    logps = dense_logps(case.hidden, case.weight, case.batch)
    dense = LOSSES["rao"](case.batch.loss_inputs(logps, **given), **hyper)
    torch.testing.assert_close(out.loss, dense.loss)
    torch.testing.assert_close(out.values, dense.values)
    if term != "none":
        torch.testing.assert_close(out.metrics, dense.metrics)
    wanted = [case.hidden, case.weight]
    got = torch.autograd.grad(out.loss, wanted)
    torch.testing.assert_close(got, torch.autograd.grad(dense.loss, wanted))
    unscored = ~case.batch.logp_grad_mask if term != "grad" else case.batch.logp_targets == -100
    assert (got[0][unscored] == 0).all()


@layouts
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "simpo", "sft"])
def test_named_losses_equal_the_trainer_path(layout: str, name: str) -> None:
    case = make(layout)
    given = {**constants(), "preferred": PREFERRED}
    out = fused_loss(name, case.hidden, case.weight, case.batch, inputs=given)
    logps = dense_logps(case.hidden, case.weight, case.batch)
    dense = LOSSES[name](case.batch.loss_inputs(logps, **given))
    torch.testing.assert_close(out.loss, dense.loss)
    torch.testing.assert_close(out.metrics, dense.metrics)
    wanted = [case.hidden, case.weight]
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, wanted), torch.autograd.grad(dense.loss, wanted)
    )


def test_reference_per_token_is_shaped_like_the_ids() -> None:
    case, given = make("left"), constants()
    reference = torch.randn(case.batch.token_shape, dtype=torch.float64)
    summed = case.batch.loss_inputs(reference).logps
    token_wise = {**given, "ref_logps": None, "ref_token_logps": reference}
    out = fused_loss("rao", case.hidden, case.weight, case.batch, inputs=token_wise)
    given["ref_logps"] = summed
    torch.testing.assert_close(
        out.loss, rao_loss(case.hidden, case.weight, case.batch, **given).loss
    )


def test_defaults_are_those_of_the_table() -> None:
    case, given = make("packed"), constants()
    plain = rao_loss(case.hidden, case.weight, case.batch, **given).loss
    assert torch.equal(
        plain, fused_loss("rao", case.hidden, case.weight, case.batch, inputs=given).loss
    )
    given["ref_prompt_logps"] = None  # type: ignore[assignment]
    out = rao_loss(
        case.hidden, case.weight, case.batch, **given, prompt_term="none", normalizer=12.0
    )
    assert out.loss.isfinite()


def test_head_options_reach_the_op() -> None:
    case = make("left")
    bias = torch.randn(V, dtype=torch.float64)
    found = sequence_logps(
        case.hidden, case.weight, case.batch, bias=bias, logit_scale=0.7, logit_softcap=3.0
    )
    logits = torch.tanh((case.hidden @ case.weight.T + bias) / 3) * 3 * 0.7
    every = torch.log_softmax(logits, dim=-1)
    logps = every.gather(-1, case.batch.logp_targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found, case.batch.loss_inputs(logps).logps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    case, given = make("left", dtype), constants(torch.float32)
    out = rao_loss(case.hidden, case.weight, case.batch, **given, log_z0=1.0)
    exact = make("left")
    expected = rao_loss(exact.hidden, exact.weight, exact.batch, **constants(), log_z0=1.0)
    assert out.loss.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(out.loss.double(), expected.loss, rtol=tolerance, atol=0)
    out.loss.backward()
    assert case.hidden.grad is not None
    assert case.hidden.grad.dtype == dtype
    assert sequence_logps(case.hidden, case.weight, case.batch).dtype == torch.float64


# Rows projected.


def work_of(run: Callable[[Case], LossOutput]) -> tuple[int, int, int]:
    case = make("packed", torch.float32)
    with record_work() as work:
        run(case).loss.backward()
    return work.rows_scored, work.rows_differentiated, work.gemm_flops


@pytest.mark.parametrize(
    ("term", "scored", "differentiated"),
    [
        ("detached", RESPONSE_ROWS + PROMPT_ROWS, RESPONSE_ROWS),
        ("eq7_literal", RESPONSE_ROWS + PROMPT_ROWS, RESPONSE_ROWS),
        ("none", RESPONSE_ROWS, RESPONSE_ROWS),
        ("grad", RESPONSE_ROWS + PROMPT_ROWS, RESPONSE_ROWS + PROMPT_ROWS),
    ],
)
def test_rao_scores_each_prompt_once_and_forward_only(
    term: str, scored: int, differentiated: int
) -> None:
    def run(case: Case) -> LossOutput:
        given = constants(torch.float32)
        return rao_loss(case.hidden, case.weight, case.batch, **given, prompt_term=term)  # type: ignore[arg-type]

    rows, grads, flops = work_of(run)
    assert (rows, grads) == (scored, differentiated)
    # Everything fits the default workspace: nothing is recomputed.
    assert flops == 2 * V * D * (scored + 2 * differentiated)


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "simpo", "sft"])
def test_losses_without_a_prompt_term_never_score_prompts(name: str) -> None:
    def run(case: Case) -> LossOutput:
        given = {**constants(torch.float32), "preferred": PREFERRED}
        return fused_loss(name, case.hidden, case.weight, case.batch, inputs=given)

    assert work_of(run)[:2] == (RESPONSE_ROWS, RESPONSE_ROWS)


def test_frozen_weight_costs_no_gradient_of_it() -> None:
    def run(case: Case) -> LossOutput:
        case.weight.requires_grad_(False)
        return rao_loss(case.hidden, case.weight, case.batch, **constants(torch.float32))

    flops = 2 * V * D * (RESPONSE_ROWS + PROMPT_ROWS + RESPONSE_ROWS)
    assert work_of(run)[2] == flops


# A function of the user's.


def test_user_function_with_values() -> None:
    case, given = make("left"), constants()

    def squared(inputs: LossInputs, *, power: int) -> Tensor:
        assert inputs.prompt_logps is None
        return (inputs.logps - inputs.require("rewards")) ** power

    rewards = {"rewards": given["rewards"]}
    out = fused_loss(
        squared, case.hidden, case.weight, case.batch, inputs=rewards, hyper={"power": 2}
    )
    logps = torch.stack(loop(case)[0])
    torch.testing.assert_close(out.values, (logps - given["rewards"]) ** 2)
    torch.testing.assert_close(out.loss, out.values.mean())
    whole = fused_loss(
        squared,
        case.hidden,
        case.weight,
        case.batch,
        inputs=rewards,
        hyper={"power": 2},
        normalizer=torch.tensor(12.0),
    )
    torch.testing.assert_close(whole.loss, out.loss / 2)


def test_user_function_with_prompts_and_its_own_output() -> None:
    case, given = make("packed"), constants()

    def regression(inputs: LossInputs) -> LossOutput:
        prompt = inputs.require("prompt_logps") - inputs.require("ref_prompt_logps")
        ratio = inputs.logps - inputs.require("ref_logps")
        values = (inputs.require("rewards") - 0.1 * (ratio + prompt + 50)).square()
        return LossOutput(values.mean(), values, {"ratio": ratio.mean().detach()})

    out = fused_loss(regression, case.hidden, case.weight, case.batch, inputs=given)
    built_in = rao_loss(case.hidden, case.weight, case.batch, **given)
    # Two responses per prompt: the mean of means is the plain mean.
    torch.testing.assert_close(out.loss, built_in.loss)
    assert set(out.metrics) == {"ratio"}
    with pytest.raises(InputError, match="normalizer"):
        fused_loss(regression, case.hidden, case.weight, case.batch, inputs=given, normalizer=2)


def test_user_function_runs_without_autocast() -> None:
    case = make("left", torch.float32)

    def squared(inputs: LossInputs) -> Tensor:
        table = torch.eye(6) * inputs.logps.float()
        return (table @ table).diagonal()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fused_loss(squared, case.hidden, case.weight, case.batch, inputs={})
        logps = sequence_logps(case.hidden, case.weight, case.batch)
    torch.testing.assert_close(out.values, logps.square().float())


# Errors.


def test_wrong_arguments() -> None:
    case, given = make("left"), constants()
    arguments = (case.hidden, case.weight, case.batch)
    with pytest.raises(InputError, match=r"`hidden`.*like the ids"):
        sequence_logps(case.hidden[:, 1:], case.weight, case.batch)
    with pytest.raises(InputError, match=r"`hidden`"):
        sequence_logps(case.hidden.reshape(-1, D), case.weight, case.batch)
    with pytest.raises(InputError, match=r"`input_ids`.*0 to 20, got 4 to 21"):
        sequence_logps(case.hidden, case.weight[:21], case.batch)
    with pytest.raises(InputError, match="rao, dro_value, .*got 'dppo'"):
        fused_loss("dppo", *arguments, inputs=given)
    with pytest.raises(InputError, match="`rewards`.*`rao` needs `rewards`"):
        fused_loss("rao", *arguments, inputs={**given, "rewards": None})
    with pytest.raises(InputError, match=r"values \[S\], S = 6"):
        fused_loss(lambda inputs: inputs.token_logps, *arguments, inputs={})
    with pytest.raises(InputError, match="`rewards`.*S = 6"):
        rao_loss(*arguments, **{**given, "rewards": torch.zeros(5, dtype=torch.float64)})
