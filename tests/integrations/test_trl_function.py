"""The replaced function of TRL against TRL's own and the float64 oracle; enable and disable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from rao_kernels.errors import InputError, IntegrationError
from rao_kernels.integrations import trl as integration

from ..cases import allowed, error, make
from ..oracle import Problem, dense

trl = pytest.importorskip("trl", reason="TRL is not installed (extra trl)")
utils = pytest.importorskip("trl.trainer.utils")

OWN = utils._ChunkedLogProbFunction
CHUNK = 32768
NAMES = ("logps", *integration.OUTPUTS)
DTYPES = (torch.float32, torch.bfloat16)

# name -> a problem, and TRL's arguments for it: temperature, softcap, logit scale.
CASES: dict[str, tuple[dict[str, object], tuple[float, float | None, float]]] = {
    "plain": ({}, (1.0, None, 1.0)),
    "temperature": ({}, (0.7, None, 1.0)),
    "gemma2": ({"logit_std": 5.0}, (1.0, 15.0, 1.0)),
    "cohere": ({"bias": True}, (1.0, None, 0.0625)),
    "all": ({"bias": True, "logit_std": 3.0}, (1.3, 9.0, 1.7)),
}


@pytest.fixture
def enabled() -> Iterator[None]:
    integration.enable()
    yield
    integration.disable()


def problem(name: str, dtype: torch.dtype) -> Problem:
    """Return a problem of `CASES` in the op's terms: scale after the softcap."""
    settings, (temperature, softcap, scale) = CASES[name]
    made = make(29, 5003, 32, dtype=dtype, entropy=True, **settings)
    cap = None if softcap is None else softcap / scale
    return replace(made, logit_scale=scale / temperature, logit_softcap=cap)


def run(
    name: str, given: Problem, *, outputs: tuple[str, ...] = integration.OUTPUTS
) -> dict[str, Tensor | None]:
    """Return outputs of the function TRL would call now, and gradients of log-probs and entropy."""
    leaves = {"hidden": given.hidden, "weight": given.weight, "bias": given.bias}
    leaves = {
        key: None if leaf is None else leaf.detach().clone().requires_grad_()
        for key, leaf in leaves.items()
    }
    temperature, softcap, scale = CASES[name][1]
    found = utils._ChunkedLogProbFunction.apply(
        *leaves.values(), given.targets, temperature, CHUNK, softcap, scale, outputs
    )
    assert len(found) == len(NAMES)
    results: dict[str, Tensor | None] = dict(zip(NAMES, found, strict=True))
    total = (found[0] * given.dlogp).sum()
    if found[1] is not None:
        total = total + (found[1] * given.dentropy).sum()
    total.backward()
    return results | {f"d{key}": leaf.grad for key, leaf in leaves.items() if leaf is not None}


def both(name: str, given: Problem, **settings: object) -> tuple[dict, dict]:
    theirs = run(name, given, **settings)
    integration.enable()
    try:
        return run(name, given, **settings), theirs
    finally:
        integration.disable()


def assert_same_kind(ours: dict, theirs: dict) -> None:
    for key, value in theirs.items():
        assert (ours[key] is None) == (value is None), key
        if value is not None:
            assert ours[key].dtype == value.dtype, key
            assert ours[key].shape == value.shape, key
            assert ours[key].requires_grad == value.requires_grad, key


def assert_right(ours: dict, given: Problem, compute: torch.dtype) -> None:
    """Allow twice the error of plain torch in the dtype of the products, or of the result."""
    truth = vars(dense(given.to(torch.float64)))
    plain = {dtype: vars(dense(given.to(dtype))) for dtype in DTYPES}
    for key, value in ours.items():
        if value is not None and key != "is_top1":
            dtype = torch.bfloat16 if torch.bfloat16 in (value.dtype, compute) else compute
            bound = allowed(plain[dtype][key], truth[key], dtype)
            assert error(value.detach(), truth[key]) <= bound, key
    assert torch.equal(ours["is_top1"], truth["is_top1"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_as_trl(name: str, dtype: torch.dtype) -> None:
    given = problem(name, dtype)
    ours, theirs = both(name, given)
    assert_same_kind(ours, theirs)
    assert_right(ours, given, dtype)


@pytest.mark.parametrize("asked", [(), ("log_probs",), *[(one,) for one in integration.OUTPUTS]])
def test_outputs_that_are_not_asked_for_are_none(asked: tuple[str, ...]) -> None:
    given = problem("plain", torch.float32)
    ours, theirs = both("plain", given, outputs=asked)
    assert_same_kind(ours, theirs)
    assert {key for key in NAMES if ours[key] is not None} == {"logps", *asked} - {"log_probs"}


def test_top_one_is_found() -> None:
    given = problem("plain", torch.float32)
    best = (given.hidden @ given.weight.T).argmax(-1)
    targets = torch.where(torch.arange(29) % 2 == 0, best, given.targets)
    ours, theirs = both("plain", replace(given, targets=targets))
    assert ours["is_top1"].sum() >= 15
    assert torch.equal(ours["is_top1"], theirs["is_top1"])


@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_head_of_another_dtype(hidden: torch.dtype, head: torch.dtype, autocast: bool) -> None:
    rounded = problem("all", torch.bfloat16).to(torch.float32)
    assert rounded.bias is not None
    given = replace(
        rounded,
        hidden=rounded.hidden.to(hidden),
        weight=rounded.weight.to(head),
        bias=rounded.bias.to(head),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = both("all", given)
    assert_same_kind(ours, theirs)
    assert_right(ours, given, torch.bfloat16 if autocast else hidden)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_partial_gradients(enabled: None, frozen: str) -> None:
    given = problem("all", torch.float32)
    leaves = {
        key: getattr(given, key).detach().clone().requires_grad_(key != frozen)
        for key in ("hidden", "weight", "bias")
    }
    logps, *_ = utils._ChunkedLogProbFunction.apply(*leaves.values(), given.targets, 1.0, CHUNK)
    logps.sum().backward()
    assert {key for key, leaf in leaves.items() if leaf.grad is None} == {frozen}


def test_no_rows_stay_connected(enabled: None) -> None:
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.int64)
    logps, entropy, *_ = utils._ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, CHUNK
    )
    (logps.sum() + entropy.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_partitioned_head_is_kept_for_backward(enabled: None) -> None:
    """Under ZeRO-3 the memory of the gathered head is released before backward."""
    given = problem("all", torch.float32)
    expected = run("all", given)
    leaves = [given.hidden.clone(), given.weight.clone(), given.bias.clone()]
    hidden, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    weight.ds_id, bias.ds_id = 0, 1
    temperature, softcap, scale = CASES["all"][1]
    logps, entropy, *_ = utils._ChunkedLogProbFunction.apply(
        hidden, weight, bias, given.targets, temperature, CHUNK, softcap, scale
    )
    weight.data.fill_(torch.nan)
    bias.data.fill_(torch.nan)
    ((logps * given.dlogp).sum() + (entropy * given.dentropy).sum()).backward()
    for key, leaf in {"dhidden": hidden, "dweight": weight, "dbias": bias}.items():
        assert torch.equal(leaf.grad, expected[key]), key


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("logit_scale", 0.0),
        ("logit_scale", -0.5),
        ("logit_scale", float("inf")),
        ("final_logit_softcapping", 0.0),
        ("final_logit_softcapping", float("nan")),
    ],
)
def test_what_the_op_cannot_compute_is_refused(enabled: None, name: str, value: float) -> None:
    given = problem("plain", torch.float32)
    settings = {"temperature": 1.0, "chunk_size": CHUNK, name: value}
    with pytest.raises(InputError, match=name):
        utils._ChunkedLogProbFunction.apply(
            given.hidden, given.weight, None, given.targets, **settings
        )


def test_options_reach_the_op() -> None:
    given = problem("plain", torch.float32)
    try:
        integration.enable(workspace_bytes=-1)
        with pytest.raises(InputError, match="workspace_bytes"):
            run("plain", given)
        integration.enable(workspace_bytes=0)
        recomputed = run("plain", given)
        integration.enable()
        retained = run("plain", given)
    finally:
        integration.disable()
    for key in ("logps", "dhidden", "dweight"):
        torch.testing.assert_close(recomputed[key], retained[key])


def test_enable_twice_and_disable() -> None:
    integration.disable()
    assert utils._ChunkedLogProbFunction is OWN
    integration.enable()
    first = utils._ChunkedLogProbFunction
    integration.enable()
    assert utils._ChunkedLogProbFunction == first
    assert utils._ChunkedLogProbFunction.original is OWN
    integration.disable()
    assert utils._ChunkedLogProbFunction is OWN


class _WithoutOutputs:
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk_size, scale=1.0): ...


class _OtherDefault:
    @staticmethod
    def forward(
        ctx, hidden, weight, bias, targets, temperature, chunk_size,
        final_logit_softcapping=None, logit_scale=1.0, outputs=("entropy", "margin"),
    ): ...  # fmt: skip


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_WithoutOutputs, "chunk_size, scale=1.0"),
        (_OtherDefault, "margin"),
        (None, "None without Triton"),
        (object(), "which has no forward"),
    ],
)
def test_another_shape_is_refused(
    monkeypatch: pytest.MonkeyPatch, function: object, said: str
) -> None:
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", function)
    with pytest.raises(IntegrationError, match=said) as caught:
        integration.enable()
    assert trl.__version__ in str(caught.value)
    assert utils._ChunkedLogProbFunction is function


@pytest.mark.parametrize("version", ["1.14.2", "0.29.1", "2.0.0"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(IntegrationError, match=version):
        integration.enable()
    assert utils._ChunkedLogProbFunction is OWN


@pytest.mark.parametrize("version", ["1.15.0", "1.16.0.dev0", "1.99.1"])
def test_a_later_minor_version_of_the_same_shape_is_taken(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(trl, "__version__", version)
    integration.enable()
    integration.disable()


def test_status_tells_whether_the_op_is_called() -> None:
    given = problem("plain", torch.float32)
    assert integration.status() == integration.Status(enabled=False)
    run("plain", given)
    integration.enable(workspace_bytes=0)
    try:
        assert integration.status().calls == 0
        run("plain", given)
        run("plain", given)
        found = integration.status()
        assert (found.enabled, found.calls, found.options) == (True, 2, {"workspace_bytes": 0})
        integration.enable()
        assert integration.status().calls == 0
    finally:
        integration.disable()
    assert not integration.status().enabled


def test_counting_calls_does_not_compile_again(enabled: None) -> None:
    given = problem("plain", torch.float32)
    graphs = CompileCounter()

    @torch.compile(backend=graphs)
    def logps(hidden: Tensor) -> Tensor:
        function = utils._ChunkedLogProbFunction
        asked = (given.weight, given.bias, given.targets, 1.0, CHUNK, None, 1.0, ("log_probs",))
        return function.apply(hidden, *asked)[0]

    expected = utils._ChunkedLogProbFunction.apply(
        given.hidden, given.weight, given.bias, given.targets, 1.0, CHUNK, None, 1.0, ()
    )[0]
    for _ in range(3):
        torch.testing.assert_close(logps(given.hidden), expected)
    assert graphs.frame_count == 1
