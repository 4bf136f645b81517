"""Rewards of functions with the signature of TRL's reward functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import Candidate, RuleScorer, UnscoredError

from .models import candidates

SOURCE = """
def length(prompts, completions, **columns):
    return [len(completion) for completion in completions]


def right(completions, answer):
    return [float(a in text) for a, text in zip(answer, completions)]


number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_rules.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    return tmp_path / "my_rules.py"


def test_a_function_of_a_module_or_of_a_file(module: Path) -> None:
    for spec in ("my_rules:length", f"{module}:length"):
        scorer = RuleScorer(spec)
        assert scorer.score(candidates(["a", "abc"])) == [1.0, 3.0]
        assert scorer.describe()["function"] == spec


def test_a_changed_file_is_another_scorer(module: Path) -> None:
    before = RuleScorer(f"{module}:length").describe()
    assert RuleScorer(f"{module}:length").describe() == before
    module.write_text(SOURCE.replace("len(completion)", "-len(completion)"))
    assert RuleScorer(f"{module}:length").describe() != before


def test_columns_reach_the_function_as_lists(module: Path) -> None:
    given = [
        Candidate("what", "it is 4", "x:1", {"answer": "4", "source": "a"}),
        Candidate("what", "it is 5", "x:2", {"answer": "6"}, finished=False),
    ]
    assert RuleScorer("my_rules:right").score(given) == [1.0, 0.0]
    seen: dict[str, Any] = {}

    def watch(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(prompts)

    RuleScorer(watch).score(given)
    assert seen == {
        "prompts": ["what", "what"],
        "completions": ["it is 4", "it is 5"],
        "answer": ["4", "6"],
        "source": ["a", None],
        "finished": [True, False],
    }


def test_completions_of_a_conversation_are_messages() -> None:
    """As TRL gives them, whose own functions run here."""
    trl = pytest.importorskip("trl.rewards")
    asked = [{"role": "user", "content": "what"}]
    texts = ["<think>\nhm\n</think>\nit is 4", "it is 4"]
    given = [Candidate(asked, text, f"x:{n}") for n, text in enumerate(texts)]
    assert RuleScorer(trl.think_format_reward).score(given) == [1.0, 0.0]


def test_tensors_and_truth_values_are_numbers() -> None:
    def tensor(prompts: Any, completions: Any, **_: Any) -> Any:
        return torch.tensor([0.5, 2.0])

    def truth(prompts: Any, completions: Any, **_: Any) -> Any:
        return [True, False]

    given = candidates(["a", "b"])
    assert RuleScorer(tensor).score(given) == [0.5, 2.0]
    assert RuleScorer(truth).score(given) == [1.0, 0.0]


@pytest.mark.parametrize("value", [None, float("nan"), "4", [1.0], 10**400])
def test_no_number_names_the_record(value: Any) -> None:
    def rule(prompts: Any, completions: Any, **_: Any) -> Any:
        return [1.0, value, 3.0]

    with pytest.raises(UnscoredError, match="rows:1: the rule .*rule gives") as caught:
        RuleScorer(rule).score(candidates(["a", "b", "c"]))
    assert (caught.value.found[0], caught.value.found[2]) == (1.0, 3.0)


@pytest.mark.parametrize("returned", [None, [1.0], 3.0, {"a": 1}])
def test_another_number_of_rewards_is_refused(returned: Any) -> None:
    def rule(prompts: Any, completions: Any, **_: Any) -> Any:
        return returned

    with pytest.raises(InputError, match="list of 2 numbers"):
        RuleScorer(rule).score(candidates(["a", "b"]))


def test_an_error_of_the_function_says_where() -> None:
    def rule(prompts: Any, completions: Any, **_: Any) -> Any:
        return 1 // 0

    with pytest.raises(ZeroDivisionError) as caught:
        RuleScorer(rule).score(candidates(["a", "b"]))
    assert "rows:0 to rows:1" in caught.value.__notes__[0]


def test_a_needed_column_that_is_missing_is_named(module: Path) -> None:
    with pytest.raises(DataError, match="rows:0: no column `answer`"):
        RuleScorer("my_rules:right").score(candidates(["a"]))


def test_a_column_that_would_hide_an_argument_is_refused(module: Path) -> None:
    with pytest.raises(DataError, match="rows:0: the column `completions`"):
        RuleScorer("my_rules:length").score(candidates(["a"], completions="b"))


@pytest.mark.parametrize(
    "spec", ["my_rules", "my_rules:none", "my_rules:number", "no_module:f", "none.py:f", ":f"]
)
def test_a_rule_that_is_not_there_is_refused(module: Path, spec: str) -> None:
    with pytest.raises(InputError, match="`rule`: expected 'package.module:function'"):
        RuleScorer(spec)
