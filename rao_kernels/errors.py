"""Exceptions. A message names the argument, what was expected, what was given, what to do."""

from __future__ import annotations


class InputError(ValueError):
    """An argument of a public function is wrong."""

    def __init__(self, argument: str, expected: str, got: object, fix: str = "") -> None:
        self.argument = argument
        super().__init__(f"`{argument}`: expected {expected}, got {got}.{' ' + fix if fix else ''}")


class DataError(ValueError):
    """A record of user data is wrong; `where` names it, for example ``train.jsonl:12``."""

    def __init__(self, where: str, problem: str, fix: str = "") -> None:
        self.where = where
        super().__init__(f"{where}: {problem}.{' ' + fix if fix else ''}")


class OneSidedTargetsWarning(UserWarning):
    """RAO's targets ask to raise, or to lower, the log-probability of every response."""


class BackendError(RuntimeError):
    """The requested backend, or every backend, cannot run the problem."""


class DivergedError(RuntimeError):
    """Training produced values that are not finite; nothing of that step is saved."""


class NotYetError(NotImplementedError):
    """A feature that this version does not implement."""


class IntegrationError(RuntimeError):
    """Another library's version or interface is not the one that an integration supports."""

    def __init__(self, expected: str, got: str, fix: str) -> None:
        super().__init__(f"expected {expected}, got {got}. {fix}")


class MissingDependencyError(ImportError):
    """An optional package is missing."""

    def __init__(self, package: str, extra: str | None) -> None:
        what = package if extra is None else f"'rao-kernels[{extra}]'"
        super().__init__(
            f"{package} is needed here and not installed. Install it with: pip install {what}"
        )
