"""`rao-kernels eval`: held-out metrics of a loss, and KL and rewards of fresh samples.

It computes what it is asked for: --loss its metrics on the responses of the data; --samples fresh
responses, of which --ref_model gives the KL and a source of rewards the mean reward; --against
the same rewards of another model, and how often each wins.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import DataReport, RecordSource
from ..errors import InputError
from ..generation import PromptRow, SamplingOptions, read_prompts
from ..generation.text import check_sampling, check_seed
from ..rewards import Scorer
from ..train import RAOConfig
from ..train.estimates import Comparison, Estimate, compare_rewards, mean_over_prompts
from ..train.evaluate import (
    SampledPrompts,
    SamplingPlan,
    check_kl_sampling,
    in_precision,
    loss_metrics,
    sample_rewards,
    sampled_kl,
)
from ..train.evaluate_plot import draw_evaluation
from ..train.model import load_model, load_tokenizer
from ..train.output_folder import check_writable
from .options import option, parse_options
from .sampling_options import SamplingArguments
from .scorer_options import ScorerOptions, check_scorer, make_scorer
from .shape_options import ShapeArguments


@dataclass
class EvalArguments:
    """The models, the data and what is asked of them."""

    model: str = field(metadata={"help": "Folder or name of the model."})
    data: list[str] = field(
        metadata={"help": "Files of held-out records (.jsonl, .jsonl.gz, .parquet)."}
    )
    ref_model: str | None = option(
        None, "Folder or name of the reference, for losses with one and for the KL of samples."
    )
    against: str | None = option(
        None, "Folder or name of a model that answers the same prompts and is compared by reward."
    )
    samples: int = option(0, "Fresh responses to each prompt; 0: none.")
    limit: int | None = option(None, "Use the first so many records of the data.")


@dataclass
class EvalConfig(RAOConfig):
    """Settings of an evaluation: those of training that have a meaning without it."""

    loss: str = option(
        "", "Name of the loss whose metrics are computed (`rao-kernels losses` lists them)."
    )
    output_dir: str | None = option("eval_output", "Folder of eval.json and eval.png.")

    def hyperparameters(self) -> dict[str, Any]:
        """Return every hyperparameter of the loss, if there is one."""
        return super().hyperparameters() if self.loss else {}


@dataclass
class Results:
    """What an evaluation found.

    log_ratios: of the samples. rewards: mean reward of each prompt, by model.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, dict[str, float]] = field(default_factory=dict)
    kl: dict[str, Estimate] = field(default_factory=dict)
    mean_reward: dict[str, Estimate] = field(default_factory=dict)
    comparison: Comparison | None = None
    log_ratios: list[float] = field(default_factory=list)
    rewards: dict[str, list[float]] = field(default_factory=dict)


TYPES = [EvalArguments, ShapeArguments, SamplingArguments, ScorerOptions, EvalConfig]


def run(argv: Sequence[str]) -> None:
    """Parse the options, evaluate, print a table, and write eval.json and eval.png."""
    arguments, shapes, sampling, source, config = parse_options("rao-kernels eval", TYPES, argv)
    options = sampling.sampling(arguments.samples)
    scored = source != ScorerOptions()
    if scored:
        check_scorer(source)
    _check(arguments, options, config, scored)
    folder = Path(str(config.output_dir))
    check_writable(folder)
    scorer = make_scorer(source) if scored else None
    data = RecordSource(arguments.data, shapes.options(), arguments.limit)
    results = _evaluate(arguments, data, options, config, scorer)
    print("\n".join(_table(results)))
    _write(folder / "eval.json", arguments, shapes, sampling, config, scorer, results)
    draw_evaluation(
        folder / "eval.png",
        metrics=results.metrics,
        log_ratios=results.log_ratios,
        rewards=results.rewards,
        comparison=results.comparison,
    )
    print(f"eval.json and eval.png are in {folder}")


def _check(
    arguments: EvalArguments, options: SamplingOptions, config: EvalConfig, scored: bool
) -> None:
    """Raise, before anything is loaded, for options that ask for nothing or lack another."""
    if arguments.samples == 0:
        if arguments.against is not None or scored:
            raise InputError("samples", "at least 1, of which rewards are computed", 0)
        if not config.loss:
            expected = "the name of a loss, or --samples above 0 for fresh responses"
            raise InputError("loss", expected, "neither")
        return
    check_sampling([], options)
    check_seed(config.seed)
    if arguments.against is not None and not scored:
        expected = "a source of rewards beside it, such as --reward_model or --rule"
        raise InputError("against", expected, "none")
    if arguments.ref_model is not None:
        check_kl_sampling(options)
    elif not scored:
        expected = "a reference, for the KL of the samples, or a source of their rewards"
        raise InputError("ref_model", expected, "neither")


def _evaluate(
    arguments: EvalArguments,
    data: RecordSource,
    options: SamplingOptions,
    config: EvalConfig,
    scorer: Scorer | None,
) -> Results:
    results, rows = Results(), _prompts(data, config) if arguments.samples else None
    tokenizer = load_tokenizer(arguments.model)
    model = _load(arguments.model, "model", config)
    reference = None
    if arguments.ref_model is not None:
        reference = _load(arguments.ref_model, "ref_model", config)
    if config.loss:
        results.metrics = loss_metrics(model, reference, data, config, tokenizer)
    if rows is None:
        return results
    progress = not config.disable_tqdm
    plan = SamplingPlan(rows, options, config.seed, config.prompt_format, progress)
    with in_precision(config):
        sampled = plan.run(model, tokenizer, "model")
        if reference is not None:
            size = options.batch_size
            results.kl, groups = sampled_kl(model, reference, sampled, size)
            results.log_ratios = [one for group in groups for one in group]
    results.samples["model"] = sampled.statistics()
    if scorer is None:
        return results
    own = _score(results, "model", scorer, sampled)
    if arguments.against is not None:
        del model, reference
        other = _load(arguments.against, "against", config)
        with in_precision(config):
            sampled = plan.run(other, load_tokenizer(arguments.against), "against")
        results.samples["against"] = sampled.statistics()
        rewards = _score(results, "against", scorer, sampled)
        both = [pair for pair in zip(own, rewards, strict=True) if all(pair)]
        if both:
            mine, others = [a for a, _ in both], [b for _, b in both]
            results.comparison = compare_rewards(mine, others, config.seed)
    return results


def _prompts(data: RecordSource, config: EvalConfig) -> list[PromptRow]:
    """Read the prompts, and print what was loaded unless the loss, which reads it too, does."""
    report = DataReport()
    rows = read_prompts(data, bad_rows=config.bad_rows, report=report)
    if not config.loss:
        print(f"data: {report.describe()}")
        for skipped in report.skipped:
            print(f"skipped {skipped}", file=sys.stderr)
    return rows


def _load(name: str, argument: str, config: EvalConfig) -> nn.Module:
    model = load_model(name, torch.float32, argument)
    return model.to(config.device).requires_grad_(False)


def _score(
    results: Results, name: str, scorer: Scorer, sampled: SampledPrompts
) -> list[list[float]]:
    """Return the rewards of each prompt's samples; one without a reward is named and left out."""
    rewards, errors = sample_rewards(scorer, sampled)
    for error in errors:
        print(f"no reward: {error}", file=sys.stderr)
    if errors:
        results.samples[name]["without_reward"] = len(errors)
    rewarded = [one for one in rewards if one]
    results.mean_reward[name] = mean_over_prompts(rewarded)
    results.rewards[name] = [sum(one) / len(one) for one in rewarded]
    return rewards


def _table(results: Results) -> list[str]:
    """Return lines of names and values, with standard errors over prompts."""
    lines = [f"{name:<28}{value:.4f}" for name, value in results.metrics.items()]
    lines += [f"{f'kl/{name}':<28}{value} nats" for name, value in results.kl.items()]
    for name, value in results.mean_reward.items():
        lines.append(f"{f'mean reward, {name}':<28}{value}")
    for name, numbers in results.samples.items():
        text = f"{numbers['mean_tokens']:.1f} tokens on average, {numbers['finished']:.1%} finished"
        if missing := numbers.get("without_reward"):
            text += f", {missing:g} without a reward"
        lines.append(f"{f'samples, {name}':<28}{text}")
    if (found := results.comparison) is not None:
        low, high = found.win_rate_interval
        counts = f"{found.wins} wins, {found.ties} ties, {found.losses} losses"
        lines.append(f"{'win rate':<28}{found.win_rate} (95% {low:.4f} to {high:.4f}), {counts}")
        low, high = found.difference_interval
        text = f"{found.difference} (95% {low:.4f} to {high:.4f})"
        lines.append(f"{'difference of rewards':<28}{text}")
    return lines


def _write(
    path: Path,
    arguments: EvalArguments,
    shapes: ShapeArguments,
    sampling: SamplingArguments,
    config: EvalConfig,
    scorer: Scorer | None,
    results: Results,
) -> None:
    given = {**asdict(arguments), **asdict(shapes), **asdict(sampling)}
    settings = {**given, "loss": config.loss, "seed": config.seed}
    if config.loss:
        settings["hyperparameters"] = config.hyperparameters()
    if scorer is not None:
        settings["scorer"] = scorer.describe()
    found = {name: value for name, value in asdict(results).items() if value}
    text = json.dumps({"settings": settings, **found}, indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")
