"""rao_kernels: its defaults, some of its options, its other backends."""

from __future__ import annotations

import torch

from ... import backends, fused_loss, linear_logprobs
from ...errors import BackendError
from ...types import EngineOptions
from ..cases import OP
from ..problems import Problem
from ._interface import Call, Function, Provider, Unsupported, differentiated

DEFAULT, SPARSE = "rao_kernels", "rao_kernels sparse 2^-9"
ALL_OF_IT = 1 << 62


def _value_of(problem: Problem, options: EngineOptions) -> Function:
    if problem.task == OP:
        return lambda hidden, weight: linear_logprobs(
            hidden, weight, problem.targets, logit_softcap=problem.softcap, **options
        )
    batch, inputs, hyper = problem.batch, problem.loss_inputs, problem.hyper
    return lambda hidden, weight: (
        fused_loss(problem.task, hidden, weight, batch, inputs=inputs, hyper=hyper, **options).loss
    )


def provider(name: str, options: EngineOptions) -> Provider:
    """Return a provider of the op, and of losses on it, with these options."""

    def prepare(problem: Problem, direction: str) -> Call:
        dtype = problem.weight.dtype
        try:
            backends.select(options.get("backend"), problem.weight.device, dtype)
        except BackendError as error:
            raise Unsupported(str(error)) from error
        if options.get("grad_tolerance") and dtype not in (torch.bfloat16, torch.float16):
            raise Unsupported(f"2^-9 is below the rounding of half precision, not of {dtype}")
        return differentiated(_value_of(problem, options), problem, direction)

    return Provider(name, prepare, is_ours=True)


def providers(device: torch.device) -> list[Provider]:
    default = backends.select(None, device, torch.bfloat16)
    others = [
        name
        for name, reason in backends.reasons(device, torch.bfloat16).items()
        if reason is None and name != default and not (name == "triton" and device.type == "cpu")
    ]  # on a CPU only Triton's interpreter runs
    return [
        provider(DEFAULT, {}),
        provider("rao_kernels retained", {"workspace_bytes": ALL_OF_IT}),
        provider("rao_kernels recomputed", {"workspace_bytes": 0}),
        provider(SPARSE, {"grad_tolerance": 2.0**-9}),
        *(provider(f"rao_kernels backend={name}", {"backend": name}) for name in others),
    ]
