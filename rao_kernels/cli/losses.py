"""`rao-kernels losses`: the table of losses, and all about one of them."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..losses import LossSpec

_WIDTH = 100
_INDENT = " " * 30
_HEAD = """\
# Losses

One section per family, one entry per key of `rao_kernels.losses.LOSSES`: formula, what the loss is
a mean over, what it reads, its hyperparameters with their defaults and meanings, and what public
implementations do otherwise. Every loss is a function of token log-probabilities; hidden states
go through it by `fused_loss(key, ...)`. Inputs are fields of `LossInputs`; `a or b` is satisfied
by either.

This page is printed by `rao-kernels losses --markdown`.
"""
_WORDS = {
    "groups": "groups",
    "preferred": "labels",
    "ref_logps|ref_token_logps": "reference",
    "ref_token_logps": "reference per token",
    "prompt_logps": "prompts",
    "ref_prompt_logps": "reference of prompts",
    "rewards": "rewards",
    "advantages": "advantages",
    "advantages|rewards": "rewards or advantages",
    "old_token_logps": "old log-probs",
    "values": "values",
    "returns": "returns",
    "old_values": "old values",
    "gold": "gold answers",
    "kl_logps": "mismatched pairs",
    "ref_kl_logps": "reference of them",
    "reward_ensemble": "rewards of several models",
    "ref_rewards": "rewards of reference samples",
    "ref_reward_groups": "groups of them",
    "token_log_sum_sq": "log sum p^2",
}


def run(argv: Sequence[str]) -> None:
    """Print the table, or the losses named in full."""
    parser = argparse.ArgumentParser(prog="rao-kernels losses", description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="KEY", help="losses to describe in full")
    parser.add_argument("--markdown", action="store_true", help="describe all, as docs/losses.md")
    arguments = parser.parse_args(argv)
    from ..losses import LOSSES

    named = [LOSSES.find(key, "KEY") for key in arguments.keys]
    if arguments.markdown:
        sys.stdout.write(markdown(LOSSES.values()))
    elif arguments.keys:
        print("\n\n".join("\n".join(_entry(spec)) for spec in named))
    else:
        print("\n".join(_table(LOSSES.values())))


def markdown(specs: Iterable[LossSpec]) -> str:
    """The page docs/losses.md."""
    lines = [_HEAD]
    for module, rows in groupby(specs, key=lambda spec: spec.terms.__module__):
        title, _, rest = (inspect.getdoc(sys.modules[module]) or "").partition("\n")
        lines += [f"## {title.rstrip('.')}", "", *rest.strip().splitlines(), ""]
        for spec in rows:
            lines += [*_entry(spec), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(specs: Iterable[LossSpec]) -> Iterator[str]:
    """Three lines or more per loss: needs beside key and unit, then hyperparameters and paper."""
    yield f"{'key':<20}{'mean over':<10}needs, [takes]; hyperparameters; paper"
    for spec in specs:
        needs = ", ".join(_needs(spec)) or "log-probs alone"
        taken = ", ".join(_taken(spec))
        first, *more = wrap(f"{needs} [{taken}]" if taken else needs, _WIDTH - len(_INDENT))
        yield f"{spec.name:<20}{spec.unit + 's':<10}{first}"
        hyper = wrap(_hyperparameters(spec), _WIDTH - len(_INDENT))
        paper = wrap(spec.paper, _WIDTH - len(_INDENT))
        for line in (*more, *hyper, *paper, *wrap(_untrainable(spec), _WIDTH - len(_INDENT))):
            yield _INDENT + line


def _entry(spec: LossSpec) -> Iterator[str]:
    """Lines of a section on one loss."""
    doc = inspect.getdoc(spec.terms) or ""
    yield f"### `{spec.name}`"
    yield ""
    yield from doc.partition("\n\nArgs:")[0].splitlines()
    yield ""
    facts = {
        "Paper": spec.paper,
        "Mean over": f"{spec.unit}s",
        "Needs": ", ".join(_fields(need) for need in spec.required_inputs({})) or "log-probs alone",
        "Reads where given": ", ".join(map(_fields, spec.optional)),
        "Conditional": ", ".join(_conditions(spec)),
        "Also known as": ", ".join(f"`{alias}`" for alias in _aliases(spec)),
        "As a function only": _untrainable(spec),
        "Hyperparameters": "" if spec.defaults else "none",
    }
    for name, text in facts.items():
        if text:
            yield from _item(f"{name}: {text}")
    from ..losses import meanings

    for name, meaning in meanings(spec).items():
        yield from _item(f"`{name}={spec.defaults[name]!r}`: {meaning}")
    for note in spec.notes:
        yield from _item(note)


def _untrainable(spec: LossSpec) -> str:
    """Why `rao-kernels train` refuses the loss; empty where it does not."""
    from ..data import unmet_needs

    lacking = [_WORDS[need] for need in unmet_needs(spec.required_inputs({}))]
    return f"not by `rao-kernels train`: rows have no {', no '.join(lacking)}" if lacking else ""


def _aliases(spec: LossSpec) -> list[str]:
    from ..losses import ALIASES

    return [alias for alias, key in ALIASES.items() if key == spec.name]


def _item(text: str) -> list[str]:
    return wrap(
        text,
        _WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _hyperparameters(spec: LossSpec) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in spec.defaults.items()) or "no hyperparameters"


def _needs(spec: LossSpec) -> list[str]:
    """What the loss needs at its defaults, in words."""
    needs = list(spec.required_inputs({}))
    if {"groups", "preferred"} <= set(needs):
        needs = ["pairs", *(n for n in needs if n not in ("groups", "preferred"))]
    return [_WORDS.get(need, need) for need in needs]


def _taken(spec: LossSpec) -> list[str]:
    """What it may read besides, in words."""
    skipped = [need for need in spec.needs if need not in spec.required_inputs({})]
    return [_WORDS.get(need, need) for need in (*spec.optional, *skipped)]


def _fields(need: str) -> str:
    return " or ".join(f"`{name}`" for name in need.split("|"))


def _conditions(spec: LossSpec) -> Iterator[str]:
    for need, settings in spec.needed_unless.items():
        unless = " or ".join(f"`{name}={value!r}`" for name, value in settings)
        yield f"{_fields(need)} unless {unless}"
