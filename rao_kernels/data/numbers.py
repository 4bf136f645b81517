"""Numbers of a record: rewards, scores and log-probabilities."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from numbers import Real

from ..errors import DataError
from .messages import show, to_python

# The norm of the gradient must be finite in fp32, or clipping by it makes every weight NaN. A
# squared loss has gradients of up to 2 |reward| per token; times hidden values of 100 and 10,000
# tokens they are 2e12 at this bound, and the squares of 1e10 of them sum to 4e34, below 3.4e38.
# Also, fp32 still tells rewards apart here that differ by 0.1.
MAX_REWARD = 1_000_000


def parse_number(where: str, name: str, given: object) -> float:
    """Return a finite number of a size of at most `MAX_REWARD`."""
    number = as_float(to_python(given))
    if not math.isfinite(number):
        raise DataError(where, f"{name} is {show(given)}, not a finite number")
    if abs(number) > MAX_REWARD:
        problem = f"{name} is {show(given)}, larger than {MAX_REWARD:,} in size"
        raise DataError(where, problem, "Rescale the rewards, for example to a deviation of 1.")
    return number


def parse_numbers(where: str, column: str, given: object, each: str = "") -> list[float]:
    """Return a list of numbers; `each` names one of them in messages."""
    values = to_python(given)
    if not isinstance(values, (list, tuple)):
        raise DataError(where, f"`{column}` must be a list, got {type(values).__name__}")
    each = each or f"number of `{column}`"
    return [parse_number(where, f"{each} {i}", value) for i, value in enumerate(values)]


def parse_rewards(where: str, given: object, count: int) -> list[float]:
    """Return one reward per response."""
    values = to_python(given)
    if isinstance(values, (list, tuple)) and len(values) != count:
        raise DataError(where, f"{count} responses but {len(values)} rewards")
    return parse_numbers(where, "rewards", values, "reward")


def as_float(value: object) -> float:
    """Return the value as a float, NaN if it is no real number."""
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max  # beyond MAX_REWARD, as the value is
    except ValueError:  # a signalling NaN of Decimal
        return math.nan
