"""Options of a command from flags and YAML, one for each field of its dataclasses."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from ..errors import InputError, MissingDependencyError


def option(default: Any, text: str) -> Any:
    """Make a field of a dataclass of options, with its help."""
    return dataclasses.field(default=default, metadata={"help": text})


# Options of transformers for scripts that choose by them what to do; no command reads them.
_UNUSED = ("do_train", "do_eval", "do_predict")


def parse_options(
    prog: str, types: Sequence[Any], argv: Sequence[str], *, without: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Make instances of the dataclasses `types` from ``--config x.yaml`` and flags; flags win.

    Args:
        prog: name of the program, for messages.
        types: the dataclasses.
        argv: the flags.
        without: fields that are no options of this program and keep their defaults.

    Raises:
        InputError: an option is unknown, or a value is wrong.
    """
    parser = HfArgumentParser(types, prog=prog, allow_abbrev=False, formatter_class=_Help)
    parser.add_argument("--config", metavar="YAML", help="File of options; flags override it.")
    for action in parser._actions:
        if action.dest in (*without, *_UNUSED):
            action.help = argparse.SUPPRESS
            for name in action.option_strings:
                del parser._option_string_actions[name]
    _sort_help(parser, types)
    strings = parser._option_string_actions
    known = [name.removeprefix("--") for name in strings if name.startswith("--")]
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            given_flags(argv, known), return_remaining_strings=True
        )
    except InputError:
        raise
    except (ImportError, OSError, ValueError) as error:
        # Errors of transformers about its own options.
        raise InputError("options", "values that work together", str(error)) from error
    for item in unknown:
        raise _unknown(item, item.lstrip("-").partition("=")[0], known)
    # The namespace of options that belong to no dataclass: --config.
    return tuple(parsed[: len(types)])


def given_flags(argv: Sequence[str], known: Sequence[str] | None = None) -> list[str]:
    """Return `argv` with the options of its ``--config`` file, if any, before its other flags.

    known: names that the file may hold; None: any.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config, flags = first.parse_known_args(list(argv))
    return [*(_as_flags(Path(config.config), known) if config.config else []), *flags]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option under one name, with its default if it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        if action.option_strings[0] != "-h":
            # The other name is the same with hyphens.
            shown.option_strings = action.option_strings[:1]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = not action.required and action.default not in (None, [])
        return super()._get_help_string(action) if has_default else action.help


def _sort_help(parser: argparse.ArgumentParser, types: Sequence[Any]) -> None:
    """Show required options first, then those of this package, then those of other bases."""
    package = __package__.partition(".")[0]
    ours = [base for one in types for base in one.__mro__ if base.__module__.startswith(package)]
    own = {name for one in [*types, *ours] for name in inspect.get_annotations(one)}
    bases = {
        field.name: f"options of {base.__module__.partition('.')[0]}.{base.__name__}"
        for one in types
        for base in one.__mro__[1:]
        if hasattr(base, "__dataclass_fields__")
        for field in dataclasses.fields(base)
    }
    groups: dict[str, list[argparse.Action]] = {"required": [], "options": []}
    for action in parser._actions:
        title = "options" if action.dest in own else bases.get(action.dest, "options")
        groups.setdefault("required" if action.required else title, []).append(action)
    parser._action_groups.clear()
    for title, actions in groups.items():
        parser.add_argument_group(title)._group_actions.extend(actions)
    needed = " ".join(f"--{action.dest} {action.dest.upper()}" for action in groups["required"])
    parser.usage = f"%(prog)s {needed} [options]"
    parser.epilog = "Names may be written with hyphens too: --eval-data."


def _as_flags(path: Path, known: Sequence[str] | None) -> list[str]:
    """Turn the options of a YAML file into command-line arguments."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("PyYAML", "train") from error
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError("config", "a YAML file", f"{path}: {error}") from error
    if not isinstance(options, dict):
        raise InputError("config", "a YAML mapping of options", type(options).__name__)
    flags: list[str] = []
    for name, value in options.items():
        if known is not None and name not in known:
            raise _unknown(f"{name} (in {path.name})", str(name), known)
        if value is not None:
            flags += _flag(name, value)
    return flags


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _unknown(item: str, name: str, known: Sequence[str]) -> InputError:
    near = get_close_matches(name, known, 1)
    return InputError(
        item, "a known option", "an unknown one", f"Did you mean --{near[0]}?" if near else ""
    )
