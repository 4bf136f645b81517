"""What an online run depends on, and what cannot be trained on fresh samples."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import InputError, NotYetError
from ...losses import LossSpec
from ...refcache import start_fingerprint
from ..identity import Identity
from .config import OnlineConfig

# Settings that the result depends on, beside those of any run.
SETTINGS = (
    *("prompts_per_round", "responses_per_prompt", "inner_epochs", "max_new_tokens", "temperature"),
    *("top_p", "top_k", "refresh_reference_every", "mask_truncated_completions", "kl_coef"),
    *("gamma", "gae_lambda", "whiten_advantages", "sampling_batch_size"),
)
# Those that only losses with estimated advantages read.
_OF_ADVANTAGES = ("kl_coef", "gamma", "gae_lambda", "whiten_advantages")


def settings_read(args: OnlineConfig) -> dict[str, Any]:
    """Return the settings that the loss reads, for the model card."""
    unread = () if args.estimates_advantages else _OF_ADVANTAGES
    found = {name: getattr(args, name) for name in SETTINGS if name not in unread}
    return found | {"prompts_per_round": args.round_size}


def method_items(args: OnlineConfig, reference: nn.Module | None) -> Identity:
    """Return the part of a run's identity that is its method; reference: the one given."""
    return {
        "online": True,
        "loss": args.spec.name,
        **{f"hyperparameter {key}": value for key, value in args.hyperparameters().items()},
        "reference": _fingerprint(reference),
        "packing": args.packing,
        **{name: getattr(args, name) for name in SETTINGS},
    }


def _check_whole_weights(args: OnlineConfig) -> None:
    """Raise for FSDP and DeepSpeed, whether by arguments or by `accelerate launch`."""
    from accelerate.utils import parse_flag_from_env

    for name, given in (("fsdp", args.fsdp), ("deepspeed", args.deepspeed)):
        if given or parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}"):
            got = "a configuration" if given else "a configuration of `accelerate launch`"
            expected = "None: sampling needs the whole weights on each device (DDP)"
            raise InputError(name, expected, got)


def check_online(args: OnlineConfig) -> None:
    """Raise for what cannot be trained on fresh samples."""
    if not isinstance(args, OnlineConfig):
        raise InputError("args", "an OnlineConfig", type(args).__name__)
    needs = args.spec.required_inputs(args.hyperparameters())
    if "advantages" in needs and "values" not in needs:
        raise InputError("value_coef", "above 0: PPO's advantages need a value head", 0.0)
    for need in ("kl_logps", "reward_ensemble"):
        if need in needs:
            raise NotYetError(
                f"the loss {args.loss!r} needs `{need}`, which sampling does not give"
            )
    _check_whole_weights(args)
    if args.streaming:
        raise InputError("streaming", "False: prompts and rounds are kept in memory", True)
    if args.dataloader_num_workers:
        expected = "0: micro-batches are made of the round that is in memory"
        raise InputError("dataloader_num_workers", expected, args.dataloader_num_workers)
    if args.ignore_data_skip:
        expected = "False: a run that is resumed within a round goes on behind what was trained on"
        raise InputError("ignore_data_skip", expected, True)
    for spec, bound in args.spec.bound_parts(args.hyperparameters()):
        _check_part(spec, bound, args)


def _check_part(spec: LossSpec, bound: dict[str, Any], args: OnlineConfig) -> None:
    """Raise if one of the losses that are summed, or the only one, cannot learn from a round."""
    steps, count = args.steps_per_round, args.responses_per_prompt
    if bound.get("on_policy") and steps > 1:
        expected = f"False: a round has {steps} steps, and only the first is"
        raise InputError("on_policy", expected, True)
    if count < 2 and _compares_responses(spec, bound):
        expected = f"at least 2: the loss {spec.name!r} compares responses to a prompt"
        raise InputError("responses_per_prompt", expected, count)
    if args.estimates_advantages and "advantages|rewards" in spec.needs:
        expected = "'ppo' without losses that have advantages of their own, which they make of the "
        raise InputError("loss", f"{expected}rewards of a prompt", f"{spec.name!r} beside it")


def _compares_responses(spec: LossSpec, bound: dict[str, Any]) -> bool:
    """Return whether a single response to a prompt, with its reward, teaches nothing."""
    needs = spec.required_inputs(bound)
    if spec.unit == "pair" or "preferred" in needs or "rewards" in spec.probabilities:
        return True
    if {"gold", "ref_rewards"} & set(needs):
        return False
    return "advantages|rewards" in needs or {"rewards", "groups"} <= set(needs)


def needs_reference(args: OnlineConfig) -> bool:
    """Return whether the loss, or the KL in PPO's reward, needs the reference's log-probs."""
    needs = args.spec.required_inputs(args.hyperparameters())
    read = {"ref_logps", "ref_token_logps", "ref_prompt_logps"}
    return any(read & set(need.split("|")) for need in needs) or (
        args.estimates_advantages and args.kl_coef > 0
    )


def _fingerprint(reference: nn.Module | None) -> Any:
    if reference is None:
        return None
    return {"what": "weights", "sha256": start_fingerprint(reference)}
