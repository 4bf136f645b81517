"""`rao-kernels losses`: the table of losses, and the full description of single ones."""

from __future__ import annotations

import argparse
import inspect
import re
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

Every loss is a function of token log-probabilities. `fused_loss(key, hidden, weight, batch, ...)`
computes one from hidden states and the head's weight, `LOSSES[key](LossInputs(...))` from
log-probabilities, and `rao-kernels train --loss key` trains with it. Other names from the table
below work in place of the key.

This page is written by `docs/generate_losses.py` and printed by `rao-kernels losses --markdown`.

## Index

"Data": the inputs it needs with default hyperparameters; "pairs" are two responses to a prompt of
which one is labelled as preferred, "reference" the reference model's log-probabilities. "`train`":
whether `rao-kernels train` runs it; the others learn from responses that the policy has just
sampled, with `rao-kernels online`.

"""
_ENTRIES = """
## How to read the entries

One section per family, one entry per key of `rao_kernels.losses.LOSSES`: formula, unit of the mean,
inputs, hyperparameters with their defaults and meanings, and differences in public implementations.
Inputs are fields of `LossInputs`; for `a or b` either is enough. The types of the hyperparameters
are in `rao_kernels.losses.hyperparameters`. The symbols are defined at the head of each family.
"""
# Families of the index, by module of `rao_kernels.losses`.
_FAMILIES = {
    "rao": "reward regression",
    "regression": "reward regression",
    "group_regression": "reward regression, groups",
    "dpo": "DPO",
    "pairwise": "pairs, margin",
    "pointwise_pairs": "pairs, pointwise",
    "reward_pairs": "pairs with rewards",
    "group": "groups, softmax",
    "reference_free": "pairs, no reference",
    "unpaired": "labels",
    "policy_clipped": "policy gradient, clipped",
    "policy_weighted": "policy gradient, weighted",
    "grao": "policy gradient, gold answer",
    "sft": "likelihood",
}
# Inputs, as the tables name them.
_WORDS = {
    "groups": "groups",
    "preferred": "labels",
    "ref_logps|ref_token_logps": "reference",
    "ref_token_logps": "reference per token",
    "prompt_logps": "prompt log-probs",
    "ref_prompt_logps": "reference prompt log-probs",
    "rewards": "rewards",
    "advantages": "advantages",
    "advantages|rewards": "rewards or advantages",
    "old_token_logps": "old log-probs",
    "values": "values",
    "returns": "returns",
    "old_values": "old values",
    "gold": "gold answers",
    "kl_logps": "mismatched pairs",
    "ref_kl_logps": "reference of mismatched pairs",
    "reward_ensemble": "rewards of several models",
    "ref_rewards": "rewards of reference samples",
    "ref_reward_groups": "prompts of reference samples",
    "token_log_sum_sq": "log sum p^2",
}


def run(argv: Sequence[str]) -> None:
    """Print the table, or the full descriptions of the losses named."""
    parser = argparse.ArgumentParser(prog="rao-kernels losses", description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="KEY", help="losses to describe in full")
    parser.add_argument("--markdown", action="store_true", help="describe all, as docs/losses.md")
    arguments = parser.parse_args(argv)
    from ..losses import LOSSES

    named = [LOSSES.find(key, "KEY") for key in arguments.keys]
    if arguments.markdown:
        sys.stdout.write(markdown(LOSSES.values()))
    elif arguments.keys:
        print("\n\n".join(_described(named)))
    else:
        print("\n".join(_table(LOSSES.values())))


def markdown(specs: Iterable[LossSpec]) -> str:
    """Return the page docs/losses.md."""
    specs = list(specs)
    lines = [*_HEAD.splitlines(), *_index(specs), *_ENTRIES.splitlines(), ""]
    for module, rows in groupby(specs, key=lambda spec: spec.terms.__module__):
        title, _, rest = (inspect.getdoc(sys.modules[module]) or "").partition("\n")
        lines += [f"## {title.rstrip('.')}", "", *rest.strip().splitlines(), ""]
        for spec in rows:
            lines += [*_entry(spec), ""]
    return "\n".join(lines).rstrip() + "\n"


def _index(specs: Iterable[LossSpec]) -> Iterator[str]:
    """Yield a Markdown table with one line per loss, linked to its entry."""
    yield "| Loss | Other names | Family | Mean over | Data | Paper | `train` |"
    yield "|---|---|---|---|---|---|---|"
    for spec in specs:
        key, _, title = _heading(spec).partition(" ")
        cells = (
            f"[{key}](#{_anchor(_heading(spec))}) {title}".rstrip(),
            ", ".join(_aliases(spec)),
            _FAMILIES[spec.terms.__module__.rpartition(".")[2]],
            spec.unit,
            ", ".join(_needs(spec)),
            _citation(spec),
            "no" if _untrainable(spec) else "yes",
        )
        yield f"| {' | '.join(cells)} |"


def _heading(spec: LossSpec) -> str:
    """Return the key, and the title where it is another name."""
    from ..losses._names import spelled

    return f"`{spec.name}`" + ("" if spelled(spec.title) == spec.name else f" ({spec.title})")


def _anchor(heading: str) -> str:
    """Return the anchor that Markdown renderers make of a heading."""
    return re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-")


def _citation(spec: LossSpec) -> str:
    """Return authors and year, with a link to arXiv."""
    author, found = spec.paper.partition(", ")[0], re.search(r"arXiv (\S+?)(,|$)", spec.paper)
    return f"{author}, [{found[1]}](https://arxiv.org/abs/{found[1]})" if found else author


def _table(specs: Iterable[LossSpec]) -> Iterator[str]:
    """Yield the lines of the table: key, unit and needs; title, hyperparameters and paper."""
    yield f"{'key':<20}{'mean over':<10}needs, [takes]; hyperparameters; paper"
    for spec in specs:
        needs = ", ".join(_needs(spec))
        taken = ", ".join(_taken(spec))
        first, *more = wrap(f"{needs} [{taken}]" if taken else needs, _WIDTH - len(_INDENT))
        yield f"{spec.name:<20}{spec.unit + 's':<10}{first}"
        hyper = wrap(_hyperparameters(spec), _WIDTH - len(_INDENT))
        paper = wrap(spec.paper, _WIDTH - len(_INDENT), break_on_hyphens=False)
        lines = [*more, *hyper, *paper, *wrap(_untrainable(spec), _WIDTH - len(_INDENT))]
        title = "" if _heading(spec) == f"`{spec.name}`" else f"  {spec.title}"
        yield f"{title:<{len(_INDENT)}}{lines[0]}"
        for line in lines[1:]:
            yield _INDENT + line


def _entry(spec: LossSpec) -> Iterator[str]:
    """Yield the lines of a section on one loss."""
    doc = inspect.getdoc(spec.terms) or ""
    yield f"### {_heading(spec)}"
    yield ""
    yield from re.split(r"\n\n(?:Args|Returns):", doc)[0].splitlines()
    yield ""
    facts = {
        "Paper": spec.paper,
        "Mean over": f"{spec.unit}s",
        "Needs": ", ".join(_fields(need) for need in spec.required_inputs({})) or "log-probs alone",
        "Reads where given": ", ".join(map(_fields, spec.optional)),
        "Conditional": ", ".join(_conditions(spec)),
        "Also known as": ", ".join(f"`{alias}`" for alias in _aliases(spec)),
        "Trained": _untrainable(spec),
        "Hyperparameters": "" if spec.defaults else "none",
        "Defaults": spec.defaults_from,
    }
    for name, text in facts.items():
        if text:
            yield from _item(f"{name}: {text}")
    from ..losses import meanings

    for name, meaning in meanings(spec).items():
        yield from _item(f"`{name}={spec.defaults[name]!r}`: {meaning}")
    for note in spec.notes:
        yield from _item(note)


def _described(specs: Sequence[LossSpec]) -> Iterator[str]:
    """Yield the section on each loss, then the legend of each one's family."""
    for spec in specs:
        yield "\n".join(_entry(spec))
    for module in dict.fromkeys(spec.terms.__module__ for spec in specs):
        _title, _names, *rest = (inspect.getdoc(sys.modules[module]) or "").split("\n\n")
        yield from rest


def _untrainable(spec: LossSpec) -> str:
    """Return which command trains a loss that `rao-kernels train` refuses, and why; else ""."""
    from ..data import unmet_needs

    lacking = [_WORDS[need] for need in unmet_needs(spec.required_inputs({}))]
    if not lacking:
        return ""
    return f"by `rao-kernels online`; records hold no {', no '.join(lacking)}"


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
    """Return the inputs that the loss needs at its defaults, in words."""
    needs = list(spec.required_inputs({}))
    if {"groups", "preferred"} <= set(needs):
        needs = ["pairs", *(n for n in needs if n not in ("groups", "preferred"))]
    return [_WORDS.get(need, need) for need in needs] or ["log-probs alone"]


def _taken(spec: LossSpec) -> list[str]:
    """Return the further inputs that it may read, in words."""
    skipped = [need for need in spec.needs if need not in spec.required_inputs({})]
    return [_WORDS.get(need, need) for need in (*spec.optional, *skipped)]


def _fields(need: str) -> str:
    return " or ".join(f"`{name}`" for name in need.split("|"))


def _conditions(spec: LossSpec) -> Iterator[str]:
    for need, settings in spec.needed_unless.items():
        unless = " or ".join(f"`{name}={value!r}`" for name, value in settings)
        yield f"{_fields(need)} unless {unless}"
