"""The op as PyTorch sees it: registration, autograd, compile, autocast, selection, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rao_kernels import backends
from rao_kernels.engine import record_work
from rao_kernels.errors import BackendError, InputError, NotYetError
from rao_kernels.ops import linear_logprobs, linear_logprobs_and_entropy, linear_token_stats

from .. import seeds
from ..cases import allowed, error, make
from ..oracle import Problem, dense


def leaves(problem: Problem) -> tuple[Tensor, Tensor]:
    return problem.hidden.clone().requires_grad_(), problem.weight.clone().requires_grad_()


def gradients(problem: Problem, **options: object) -> tuple[Tensor, Tensor]:
    hidden, weight = leaves(problem)
    logps = linear_logprobs(hidden, weight, problem.targets, **problem.keywords(), **options)
    logps.backward(problem.dlogp.to(logps.dtype))
    return hidden.grad, weight.grad


@pytest.mark.parametrize("workspace_bytes", [0, None])
def test_gradcheck(workspace_bytes: int | None) -> None:
    problem = make(5, 11, 4, dtype=torch.float64, bias=True, softcap=2.0, scale=0.8, ignored=0.3)
    inputs = [t.clone().requires_grad_() for t in (problem.hidden, problem.weight, problem.bias)]

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        stats = linear_token_stats(
            hidden,
            weight,
            problem.targets,
            bias=bias,
            logit_softcap=2.0,
            logit_scale=0.8,
            stats=("entropy", "lse"),
            workspace_bytes=workspace_bytes,
        )
        return stats.logps, stats.entropy, stats.lse

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("ignore_index", [-100, None])
def test_compiles_without_a_graph_break(ignore_index: int | None) -> None:
    problem = make(9, 300, 16, bias=True, ignored=0.3 if ignore_index else 0.0)

    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        logps, entropy = linear_logprobs_and_entropy(
            hidden * 2, weight, problem.targets, bias=problem.bias, ignore_index=ignore_index
        )
        return (logps - 0.1 * entropy).sum()

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        hidden, weight = leaves(problem)
        value = run(hidden, weight)
        value.backward()
        results.append((value.detach(), hidden.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_former_name_of_vocab_order_is_accepted_with_a_warning() -> None:
    problem = make(rows=40, vocabulary=3000, size=8)
    order = torch.randperm(3000, generator=seeds.generator(0))
    expected = gradients(problem, grad_tolerance=0.01, vocab_order=order)
    with pytest.warns(DeprecationWarning, match="`vocab_order`"):
        found = gradients(problem, grad_tolerance=0.01, word_order=order)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(InputError, match="`word_order`.*both"):
        gradients(problem, word_order=order, vocab_order=order)


@pytest.mark.parametrize("vocab_order", [None, torch.arange(300).flip(0)])
def test_sparse_backward_compiles_without_a_graph_break(vocab_order: Tensor | None) -> None:
    problem = make(rows=40, vocabulary=300, size=8)
    options = {"grad_tolerance": 0.01, "vocab_order": vocab_order, **problem.keywords()}

    def function(hidden: Tensor) -> Tensor:
        return linear_logprobs(hidden, problem.weight, problem.targets, **options).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = []
    for run in (function, compiled):
        hidden = problem.hidden.clone().requires_grad_()
        found.append(torch.autograd.grad(run(hidden), hidden)[0])
    assert torch.equal(*found)


def test_compiles_with_dynamic_rows() -> None:
    weight = torch.randn(300, 16, requires_grad=True)
    compiled = torch.compile(linear_logprobs, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 8, 21):
        hidden, targets = torch.randn(rows, 16), torch.randint(0, 300, (rows,))
        assert torch.equal(
            compiled(hidden, weight, targets), linear_logprobs(hidden, weight, targets)
        )


def test_two_backwards_over_one_graph_agree() -> None:
    problem = make(12, 5000, 16)
    hidden, weight = leaves(problem)
    total = linear_logprobs(hidden, weight, problem.targets).sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(total, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivative_raises() -> None:
    hidden, weight = leaves(make(3, 20, 4))
    logps = linear_logprobs(hidden, weight, torch.tensor([1, 2, 3]))
    with pytest.raises(NotYetError, match="second derivative"):
        torch.autograd.grad(logps.sum(), hidden, create_graph=True)


def test_statistics_without_a_gradient_say_so() -> None:
    hidden, weight = leaves(make(3, 20, 4))
    stats = linear_token_stats(hidden, weight, torch.tensor([1, 2, 3]))
    assert not stats.mean_logits.requires_grad and not stats.log_sum_sq_probs.requires_grad
    assert stats.lse.requires_grad and stats.entropy.requires_grad


@pytest.mark.parametrize("workspace_bytes", [0, None])
def test_activation_checkpointing(workspace_bytes: int | None) -> None:
    problem = make(10, 3000, 16)
    straight = gradients(problem, workspace_bytes=workspace_bytes)
    hidden, weight = leaves(problem)
    logps = checkpoint(
        lambda h, w: linear_logprobs(h, w, problem.targets, workspace_bytes=workspace_bytes),
        hidden,
        weight,
        use_reentrant=False,
    )
    logps.backward(problem.dlogp.to(logps.dtype))
    assert torch.equal(hidden.grad, straight[0]) and torch.equal(weight.grad, straight[1])


def test_autocast_computes_in_its_dtype_and_returns_each_gradient_in_its_own() -> None:
    problem = make(20, 3000, 32)
    hidden, weight = leaves(problem)
    with torch.autocast("cpu", torch.bfloat16):
        logps = linear_logprobs(hidden, weight, problem.targets)
    logps.backward(problem.dlogp.to(logps.dtype))
    assert logps.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    half = problem.to(torch.bfloat16)
    truth, plain = dense(half.to(torch.float64)), dense(half)
    assert error(logps, truth.logps) <= allowed(plain.logps, truth.logps, torch.bfloat16)
    assert error(weight.grad, truth.dweight) <= error(plain.dweight, truth.dweight)


def test_leading_dimensions_are_kept() -> None:
    problem = make(12, 100, 8)
    flat = linear_logprobs(problem.hidden, problem.weight, problem.targets)
    shaped = linear_logprobs(
        problem.hidden.view(3, 4, 8), problem.weight, problem.targets.view(3, 4)
    )
    assert shaped.shape == (3, 4) and torch.equal(shaped.flatten(), flat)
    single = linear_logprobs(problem.hidden[0], problem.weight, problem.targets[0])
    assert single.shape == () and torch.allclose(single, flat[0])


def test_ignored_rows_enter_no_product() -> None:
    problem = make(40, 3000, 16, ignored=0.5)
    kept = int((problem.targets != -100).sum())
    assert 0 < kept < 40
    with record_work() as work:
        gradients(problem, workspace_bytes=0)
    assert work.rows_scored == work.rows_differentiated == kept
    assert work.gemm_flops == 8 * kept * 3000 * 16


def test_rows_without_upstream_gradient_are_skipped_in_backward() -> None:
    problem = make(40, 3000, 16)
    problem = replace(problem, dlogp=problem.dlogp * (torch.arange(40) % 4 == 0))
    for workspace_bytes, products in ((0, 2 + 6 / 4), (None, 2 + 4 / 4)):
        with record_work() as work:
            got = gradients(problem, workspace_bytes=workspace_bytes)
        assert work.rows_scored == 40 and work.rows_differentiated == 10
        assert work.gemm_flops == products * 40 * 3000 * 16
        truth, plain = dense(problem.to(torch.float64)), dense(problem)
        assert error(got[0], truth.dhidden) <= allowed(plain.dhidden, truth.dhidden, torch.float32)
        assert error(got[1], truth.dweight) <= allowed(plain.dweight, truth.dweight, torch.float32)
        assert not got[0][1].any()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_operand_costs_nothing(frozen: str) -> None:
    problem = make(10, 3000, 16)
    hidden, weight = leaves(problem)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    with record_work() as work:
        linear_logprobs(hidden, weight, problem.targets).sum().backward()
    assert work.gemm_flops == 4 * 10 * 3000 * 16


def test_no_gradient_is_forward_only_and_retains_nothing() -> None:
    problem = make(10, 3000, 16)
    for hidden in (problem.hidden, problem.hidden.clone().requires_grad_()):
        with torch.no_grad(), record_work() as work:
            linear_logprobs(hidden, problem.weight, problem.targets)
        assert work.gemm_flops == 2 * 10 * 3000 * 16


def test_trusted_targets_give_nan_for_a_bad_one() -> None:
    problem = make(4, 50, 8)
    targets = torch.tensor([1, 50, -7, 2])
    logps = linear_logprobs(problem.hidden, problem.weight, targets, ignore_index=None)
    assert logps.isnan().tolist() == [False, True, True, False]


def test_not_finite_hidden_is_named_or_passes_as_nan() -> None:
    problem = make(6, 50, 8, ignored=0.0)
    for bad in (torch.nan, torch.inf, -torch.inf):
        hidden = problem.hidden.clone()
        hidden[3, 2] = bad
        with pytest.raises(InputError, match=r"`hidden`.*finite.*row 3"):
            linear_logprobs(hidden, problem.weight, problem.targets)
        ignored = problem.targets.clone()
        ignored[3] = -100
        assert linear_logprobs(hidden, problem.weight, ignored).isfinite().all()
        logps = linear_logprobs(hidden, problem.weight, problem.targets, ignore_index=None)
        assert logps.isnan().tolist() == [row == 3 for row in range(6)]


H, W, T = torch.randn(4, 8), torch.randn(50, 8), torch.tensor([0, 1, 2, 49])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": H.long()}, r"`hidden`.*dtype.*int64"),
        ({"hidden": torch.randn(4, 7)}, r"`weight`.*\[V, 7\].*\[50, 8\]"),
        ({"hidden": torch.randn(4, 0), "weight": torch.randn(5, 0)}, r"`hidden`.*D >= 1"),
        ({"hidden": H.bfloat16()}, r"`weight`.*bfloat16.*float32.*autocast"),
        ({"weight": torch.randn(0, 8)}, r"`weight`.*V >= 1"),
        ({"weight": torch.randn(50)}, r"`weight`.*\[50\]"),
        ({"weight": W.to("meta")}, r"`weight`.*cpu.*meta"),
        ({"targets": T.int()}, r"`targets`.*int64.*int32"),
        ({"targets": T[:3]}, r"`targets`.*\[4\].*\[3\]"),
        ({"targets": T.to("meta")}, r"`targets`.*cpu.*meta"),
        ({"targets": torch.tensor([0, 1, 50, 2])}, r"`targets`.*\[0, 50\).*50 in row 2"),
        ({"targets": torch.tensor([0, 1, 5, -1])}, r"`targets`.*-1 in row 3"),
        ({"bias": torch.randn(49)}, r"`bias`.*\[50\].*\[49\]"),
        ({"bias": [1.0] * 50}, r"`bias`.*list"),
        ({"logit_scale": 0.0}, r"`logit_scale`.*positive.*1 / T"),
        ({"logit_scale": torch.tensor(2.0)}, r"`logit_scale`.*float"),
        ({"logit_softcap": -3.0}, r"`logit_softcap`.*positive"),
        ({"logit_softcap": float("nan")}, r"`logit_softcap`"),
        ({"workspace_bytes": -1}, r"`workspace_bytes`.*>= 0.*-1"),
        ({"grad_tolerance": 1.5}, r"`grad_tolerance`.*\[0, 1\)"),
        ({"grad_tolerance": None}, r"`grad_tolerance`.*\[0, 1\).*None"),
        ({"workspace_bytes": 1.5}, r"`workspace_bytes`.*integer.*1.5"),
        ({"vocab_order": torch.arange(49)}, r"`vocab_order`.*\[50\]"),
        ({"vocab_order": [*range(50)]}, r"`vocab_order`.*\[50\].*list"),
        ({"vocab_order": torch.arange(50, device="meta")}, r"`vocab_order`.*on cpu"),
        ({"tile": 3}, r"`options`.*workspace_bytes.*tile"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"hidden": H, "weight": W, "targets": T, **change}
    with pytest.raises(InputError, match=message):
        linear_logprobs(**arguments)


def test_a_float64_weight_is_not_narrowed_unasked() -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match=r"`weight`.*bfloat16.*float64"),
    ):
        linear_logprobs(H, W.double(), T)


def test_unknown_backend_and_statistics_list_what_there_is() -> None:
    with pytest.raises(BackendError, match=r"'nope' does not exist.*eager"):
        linear_logprobs(H, W, T, backend="nope")
    with pytest.raises(InputError, match=r"`stats`.*entropy.*nope"):
        linear_token_stats(H, W, T, stats=("nope",))


def test_torch_func_transforms_are_rejected() -> None:
    with pytest.raises(InputError, match="torch.func"):
        torch.func.grad(lambda h: linear_logprobs(h, W, T).sum())(H)


@pytest.mark.parametrize("workspace_bytes", [1, 100_000, 200_000, 10**9])
def test_any_workspace_gives_the_same_gradients(workspace_bytes: int) -> None:
    problem = make(15, 9000, 16, ignored=0.3)
    got = gradients(problem, workspace_bytes=workspace_bytes)
    truth, plain = dense(problem.to(torch.float64)), dense(problem)
    assert error(got[0], truth.dhidden) <= allowed(plain.dhidden, truth.dhidden, torch.float32)
    assert error(got[1], truth.dweight) <= allowed(plain.dweight, truth.dweight, torch.float32)


def test_duplicated_targets_accumulate() -> None:
    problem = replace(make(30, 100, 8), targets=torch.full((30,), 7))
    got = gradients(problem)
    truth, plain = dense(problem.to(torch.float64)), dense(problem)
    assert error(got[1], truth.dweight) <= allowed(plain.dweight, truth.dweight, torch.float32)


def test_backward_runs_on_the_backend_of_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """What forward retained is in its layout, whatever is chosen since."""
    ran = []
    grad_tile = backends.get("eager").grad_tile

    def recorded(*arguments: object) -> None:
        ran.append("eager")
        grad_tile(*arguments)

    monkeypatch.setattr(backends.get("eager"), "grad_tile", recorded)
    monkeypatch.setenv("RAO_KERNELS_BACKEND", "eager")
    problem = make(rows=9, vocabulary=300, size=8)
    hidden = problem.hidden.clone().requires_grad_()
    logps = linear_logprobs(hidden, problem.weight, problem.targets)
    monkeypatch.setenv("RAO_KERNELS_BACKEND", "no such backend")
    logps.sum().backward()
    assert ran
