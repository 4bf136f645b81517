"""Options that say where rewards come from, and the scorer that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data import PromptFormat
from ..errors import InputError
from ..rewards import (
    EndpointJudge,
    ImplicitScorer,
    Judge,
    JudgeScorer,
    LocalJudge,
    RewardEnsemble,
    RewardModelScorer,
    RuleScorer,
    Scorer,
)
from .options import option

_SOURCES = ("reward_model", "rule", "judge", "implicit")


@dataclass
class ScorerOptions:
    """Where rewards come from: exactly one of reward_model, rule, judge and implicit."""

    reward_model: list[str] | None = option(
        None,
        "Reward models (folders or names); of several the reward is the mean, and the single "
        "rewards are kept as reward_ensemble.",
    )
    rule: str | None = option(
        None,
        "Function f(prompts, completions, **columns) -> list of numbers, TRL's signature, as "
        "'package.module:function' or 'path/file.py:function'.",
    )
    judge: str | None = option(
        None,
        "Language model that is asked for a score: a folder or name, or the URL of an "
        "OpenAI-compatible endpoint (its key in OPENAI_API_KEY).",
    )
    judge_model: str | None = option(None, "Name of the model at the endpoint.")
    judge_prompt: str | None = option(
        None,
        "File with what the judge is asked, with {prompt}, {response} and, if wanted, {reference}; "
        "its answer must end with 'Score: N' (default: a score from 1 to 10).",
    )
    judge_max_new_tokens: int | None = option(
        None,
        "Most tokens of an answer of a judge on this machine (default: 512); one that is cut gives "
        "no score.",
    )
    implicit: str | None = option(
        None, "Policy whose implicit reward, beta times the log-ratio to implicit_ref, is taken."
    )
    implicit_ref: str | None = option(None, "Model that the policy was trained from.")
    implicit_beta: float = option(0.1, "Beta of the implicit reward, in reward per nat.")
    implicit_prompt_format: PromptFormat = option(
        "auto", "prompt_format that the policy was trained with: auto, chat or plain."
    )
    reward_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Dtype of the weights of models that score; auto: as they were saved."
    )
    reward_device: str | None = option(
        None, "Device of models that score (default: a GPU if there is one)."
    )
    reward_batch_size: int = option(
        16, "Most responses of a forward pass, or requests under way at an endpoint."
    )


def make_scorer(options: ScorerOptions) -> Scorer:
    """Make the scorer that the options name; models are loaded.

    Raises:
        InputError: not exactly one source is named, or its options do not fit it.
    """
    check_scorer(options)
    common: dict[str, Any] = {
        "dtype": options.reward_dtype,
        "device": options.reward_device,
        "batch_size": options.reward_batch_size,
    }
    if options.reward_model:
        models = [RewardModelScorer(name, **common) for name in options.reward_model]
        return models[0] if len(models) == 1 else RewardEnsemble(models)
    if options.rule is not None:
        return RuleScorer(options.rule)
    if options.judge is not None:
        return _judge(options, common)
    assert options.implicit is not None and options.implicit_ref is not None
    return ImplicitScorer(
        options.implicit,
        options.implicit_ref,
        beta=options.implicit_beta,
        prompt_format=options.implicit_prompt_format,
        **common,
    )


def check_scorer(options: ScorerOptions) -> None:
    """Raise for options that do not go together, before anything is loaded."""
    named = [name for name in _SOURCES if getattr(options, name)]
    if len(named) != 1:
        expected = f"exactly one of {', '.join(f'--{name}' for name in _SOURCES)}"
        raise InputError("reward_model", expected, " and ".join(named) or "none of them")
    if options.reward_batch_size < 1:
        raise InputError("reward_batch_size", "at least 1", options.reward_batch_size)
    needed = {"judge_prompt": "judge", "judge_max_new_tokens": "judge", "implicit_ref": "implicit"}
    for name, needs in needed.items():
        if getattr(options, name) is not None and getattr(options, needs) is None:
            raise InputError(name, f"None without --{needs}", repr(getattr(options, name)))
    if options.implicit is not None and options.implicit_ref is None:
        raise InputError("implicit_ref", "the model that the policy was trained from", None)
    at_endpoint = options.judge is not None and _is_url(options.judge)
    if at_endpoint and options.judge_model is None:
        raise InputError("judge_model", f"the name of a model at {options.judge}", None)
    if options.judge_model is not None and not at_endpoint:
        expected = "None without the URL of an endpoint as --judge"
        raise InputError("judge_model", expected, repr(options.judge_model))
    if options.judge_max_new_tokens is not None and at_endpoint:
        expected = "None with an endpoint, which limits answers itself"
        raise InputError("judge_max_new_tokens", expected, options.judge_max_new_tokens)


def _judge(options: ScorerOptions, common: dict[str, Any]) -> JudgeScorer:
    assert options.judge is not None
    template = _template(options.judge_prompt)
    judge: Judge
    if _is_url(options.judge):
        assert options.judge_model is not None
        concurrency = options.reward_batch_size
        judge = EndpointJudge(options.judge, options.judge_model, concurrency=concurrency)
    else:
        most = options.judge_max_new_tokens
        given: dict[str, Any] = {} if most is None else {"max_new_tokens": most}
        judge = LocalJudge(options.judge, **given, **common)
    return JudgeScorer(judge, template=template)


def _template(path: str | None) -> str | None:
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError("judge_prompt", "a text file", f"{path}: {error}") from error


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
