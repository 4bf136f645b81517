"""A task that a rule can judge: one short sentence that contains three given words."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

NOUNS = (
    "apple basket book bread bridge bucket button candle castle chair cheese circle clock cloud "
    "coffee corner cousin desert doctor dragon engine evening farmer feather fence flower forest "
    "friend garden ghost guitar hammer harbor horse island jacket journey kettle kitchen ladder "
    "lamp lemon letter machine market mirror monkey morning mountain music needle neighbor ocean "
    "orange painter palace pencil pepper picture pillow pirate planet pocket potato queen rabbit "
    "river rocket saddle sailor school shadow silver sister soldier spider spoon station stone "
    "storm stranger summer teacher temple thunder ticket tiger tower train turtle valley village "
    "violin wagon wallet window winter wizard"
).split()
LONGEST = 20  # words of an answer


@dataclass(frozen=True)
class Task:
    """A prompt and the words its answer must contain."""

    words: tuple[str, str, str]

    @property
    def prompt(self) -> str:
        first, second, third = self.words
        return f"Write one short sentence that contains the words {first}, {second} and {third}."

    @property
    def answer(self) -> str:
        """A sentence with all three words."""
        first, second, third = self.words
        return f"The {first} and the {second} are near the {third}."


def make_tasks(count: int, seed: int) -> list[Task]:
    """Return `count` tasks with different words; the same seed gives the same tasks."""
    generator = random.Random(seed)
    tasks: dict[frozenset[str], Task] = {}
    while len(tasks) < count:
        first, second, third = generator.sample(NOUNS, 3)
        tasks.setdefault(frozenset((first, second, third)), Task((first, second, third)))
    return list(tasks.values())


def reward(task: Task, answer: str, finished: bool) -> float:
    """Return the share of the three words in the answer; 0 if it is unfinished or too long."""
    found = re.findall(r"[a-z]+", answer.lower())
    if not finished or len(found) > LONGEST:
        return 0.0
    return sum(word in found for word in task.words) / len(task.words)


def share_of_words(
    completions: Sequence[str],
    words: Sequence[tuple[str, str, str]],
    finished: Sequence[bool],
    **_: object,
) -> list[float]:
    """Return `reward` of each completion: a rule for `rao-kernels annotate`, `online` and `eval`.

    Records of the data have the column `words`.
    """
    given = zip(completions, words, finished, strict=True)
    return [reward(Task((a, b, c)), text, done) for text, (a, b, c), done in given]
