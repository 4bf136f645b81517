"""Write docs/losses.md and rao_kernels/losses/hyperparameters.py from the table of losses."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import wrap
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from rao_kernels import losses
from rao_kernels.cli.losses import markdown
from rao_kernels.losses import LOSSES, LossSpec, hyperparameter_types, meanings

HEAD = '''\
"""Types of the hyperparameters of every loss, for editors and type checkers.

    from rao_kernels.losses.hyperparameters import SimPO

    hyper: SimPO = {"beta": 2.0, "gamma": 0.5}
    output = fused_loss("simpo", hidden, weight, batch, inputs=inputs, hyper=hyper)

An editor completes the keys; mypy and pyright reject a misspelt key or a value of another type.
A key that is left out has its default. Written by docs/generate_losses.py: do not edit.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor
'''
WIDTH = 100


def hyperparameters_module(specs: Iterable[LossSpec]) -> str:
    """Return the source of rao_kernels/losses/hyperparameters.py."""
    specs = list(specs)
    keys = "\n".join(f'    "{spec.name}",' for spec in specs)
    classes = "\n\n\n".join("\n".join(_class(spec)) for spec in specs)
    return f"{HEAD}\nLossKey = Literal[\n{keys}\n]\n\n\n{classes}\n"


def class_name(spec: LossSpec) -> str:
    """Return the name of a loss's TypedDict: its title in CamelCase."""
    parts = re.findall(r"\w+", spec.title.replace("*", " Star "))
    return "".join(part[0].upper() + part[1:] for part in parts)


def _class(spec: LossSpec) -> Iterator[str]:
    yield f"class {class_name(spec)}(TypedDict, total=False):"
    if not spec.defaults:
        yield f'    """`{spec.name}` has no hyperparameters."""'
        return
    yield from _wrapped(f'"""Hyperparameters of `{spec.name}`: {spec.paper}.', "    ", "    ")
    yield ""
    for name, meaning in meanings(spec).items():
        text = f"{name}: {_first_sentence(meaning)} Default: {_literal(spec.defaults[name])}."
        yield from _wrapped(text, "    ", "        ")
    yield '    """'
    yield ""
    for name, hint in hyperparameter_types(spec).items():
        yield f"    {name}: {_source(hint)}"


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.]) (?=[A-Z])", text)[0]


def _source(hint: Any) -> str:
    """Return the source of a type, with its aliases written out."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_source, arguments))
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(_literal, arguments))}]"
    if get_origin(hint) is tuple:
        return f"tuple[{', '.join(map(_source, arguments))}]"
    return "None" if hint is NoneType else str(hint.__name__)


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    page, module = Path(__file__).with_name("losses.md"), Path(losses.__file__).parent
    page.write_text(markdown(LOSSES.values()), encoding="utf-8")
    source = hyperparameters_module(LOSSES.values())
    (module / "hyperparameters.py").write_text(source, encoding="utf-8")
