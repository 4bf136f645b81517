"""Rewards of a function of the user's, with the signature of TRL's reward functions."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..data.messages import show, to_python
from ..errors import DataError, InputError
from .interface import Candidate, checked

_FORM = "'package.module:function' or 'path/file.py:function'"


class RuleScorer:
    """Scores with ``f(prompts, completions, **columns) -> list of numbers``, TRL's signature.

    `prompts` are texts, or lists of messages; `completions` are then lists of messages too. Columns
    are the other columns of the records, one value per completion; `finished` is False for a
    response that sampling cut. A function without ``**`` gets what it names.

    Args:
        rule: the function, or where it is: ``"package.module:function"`` or
            ``"path/file.py:function"``.

    Raises:
        InputError: there is no such function.
    """

    def __init__(self, rule: str | Callable[..., Any]) -> None:
        if isinstance(rule, str):
            self.name, self._function = rule, _find(rule)
        else:
            self.name = f"{rule.__module__}:{getattr(rule, '__qualname__', rule)}"
            self._function = rule
        parameters = inspect.signature(self._function).parameters.values()
        self._takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._named = {
            one.name: one.default is one.empty
            for one in parameters
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        }

    def describe(self) -> dict[str, Any]:
        """Return the function's place, and the SHA-256 of its file if it has one."""
        return {"kind": "rule", "function": self.name, "source": _fingerprint(self._function)}

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Call the function once for all candidates."""
        given: dict[str, list[Any]] = {
            "prompts": [candidate.prompt for candidate in candidates],
            "completions": [_completion(candidate) for candidate in candidates],
            **self._columns(candidates),
        }
        if not self._takes_all:
            given = {name: values for name, values in given.items() if name in self._named}
        try:
            returned = to_python(self._function(**given))
        except Exception as error:
            where = f"{candidates[0].where} to {candidates[-1].where}"
            error.add_note(f"raised by the rule {self.name} for the records {where}")
            raise
        if not isinstance(returned, (list, tuple)) or len(returned) != len(candidates):
            got = f"{len(returned)} of them" if isinstance(returned, (list, tuple)) else None
            expected = f"a function that returns a list of {len(candidates)} numbers, one for each"
            raise InputError("rule", expected, f"{self.name}, which returned {got or returned!r}")
        pairs = zip(candidates, returned, strict=True)
        return checked(candidates, [self._number(one.where, value) for one, value in pairs])

    def _columns(self, candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
        """Return the columns that the function takes; None where a record lacks one."""
        rows = [{**candidate.columns, "finished": candidate.finished} for candidate in candidates]
        names = dict.fromkeys(name for row in rows for name in row)
        for name in ("prompts", "completions"):
            if name in names:
                where = next(
                    c.where for c, row in zip(candidates, rows, strict=True) if name in row
                )
                problem = f"the column `{name}` has the name of an argument of the rule"
                raise DataError(where, problem, "Rename it.")
        for name, required in self._named.items():
            if required and name not in (*names, "prompts", "completions"):
                problem = f"no column `{name}`, which the rule {self.name} needs"
                raise DataError(candidates[0].where, problem)
        return {name: [row.get(name) for row in rows] for name in names}

    def _number(self, where: str, value: Any) -> float | DataError:
        value = to_python(value)
        try:
            number = math.nan if value is None or isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        return DataError(where, f"the rule {self.name} gives {show(value)}, not a finite number")


def _completion(candidate: Candidate) -> Any:
    if isinstance(candidate.prompt, str) or not isinstance(candidate.response, str):
        return candidate.response
    return [{"role": "assistant", "content": candidate.response}]


def _find(rule: str) -> Callable[..., Any]:
    place, _, name = rule.rpartition(":")
    if not place or not name:
        raise InputError("rule", _FORM, repr(rule))
    function = getattr(_import(place, rule), name, None)
    if not callable(function):
        raise InputError("rule", _FORM, f"{rule!r}: there is no function {name!r} in {place}")
    found: Callable[..., Any] = function
    return found


def _import(place: str, rule: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise InputError("rule", _FORM, f"{rule!r}: there is no file {place}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by its name.
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise InputError("rule", _FORM, f"{rule!r} ({error})") from error
    return module


def _fingerprint(function: Callable[..., Any]) -> str | None:
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
        return hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None
