"""The rule, the sampler, the tokenizer fix and the figures of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rao_kernels.data import TokenizedRow
from rao_kernels.demo.compare import Implicit, Method, Run, shared_prefix
from rao_kernels.demo.model import _check_bytes, split_digits
from rao_kernels.demo.report import correlation_within_prompts, implicit_reward, mean_and_error
from rao_kernels.demo.sampling import SamplingOptions, _draw, _sample, sample_answers
from rao_kernels.demo.task import LONGEST, NOUNS, Task, make_tasks, reward
from rao_kernels.errors import DataError
from tests import seeds
from tests.train.tiny import save_tiny, tiny_model, tiny_tokenizer

TASK = Task(("river", "lamp", "train"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A lamp by the river lit the train.", 1.0),
        ("River, LAMP.", 2 / 3),
        ("The trains and lamps of rivers.", 0.0),
        ("river river river", 1 / 3),
        ("", 0.0),
        ("river lamp train " + "very " * (LONGEST - 3), 1.0),
        ("river lamp train " + "very " * (LONGEST - 2), 0.0),
    ],
)
def test_reward(answer: str, expected: float) -> None:
    assert reward(TASK, answer, finished=True) == pytest.approx(expected)
    assert reward(TASK, answer, finished=False) == 0.0


def test_tasks_are_distinct_and_repeatable() -> None:
    tasks = make_tasks(200, seed=3)
    assert tasks == make_tasks(200, seed=3) != make_tasks(200, seed=4)
    assert len({frozenset(task.words) for task in tasks}) == 200
    assert len(set(NOUNS)) == len(NOUNS)
    assert "river, lamp and train" in TASK.prompt


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).expand(40_000, 4)
    drawn = _draw(logits, 0.5, seeds.generator()).bincount(minlength=4) / 40_000
    assert drawn[2] == 0
    torch.testing.assert_close(drawn, (logits[0] / 0.5).softmax(-1), atol=0.01, rtol=0)


def test_sampling_equals_a_plain_loop() -> None:
    """Near temperature 0: padding, the shared prompt and the shrinking batch change nothing."""
    model, tokenizer = tiny_model(5), tiny_tokenizer(chat=True)
    tokenizer.padding_side = "left"
    prompts = ["say abc", "say a long thing", "z"]
    options = SamplingOptions(answers=2, max_tokens=12, temperature=1e-5)
    found = _sample(model, tokenizer, prompts, options, seeds.generator())
    for prompt, answers in zip(prompts, (found[:2], found[2:4], found[4:]), strict=True):
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        start = len(ids)
        while len(ids) < start + 12 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answers == [ids[start:], ids[start:]]


def test_answers_are_repeatable_and_marked(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, seed=5, chat=True)
    options = SamplingOptions(answers=8, max_tokens=20, temperature=2.0, prompts_at_once=2)
    first, again, other = (
        sample_answers(folder, ["a", "b", "c"], options, seed=seed, label="test")
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [len(answers) for answers in first] == [8, 8, 8]
    assert {answer.finished for answers in first for answer in answers} == {True, False}


def test_split_digits() -> None:
    tokenizer = tiny_tokenizer()
    split_digits(tokenizer)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 1984")
    assert [text for text, _ in pieces] == ["in", "Ġ", "1", "9", "8", "4"]


def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not the model")
    with pytest.raises(DataError, match="SHA-256"):
        _check_bytes(path, "0" * 64)


def test_shared_prefix() -> None:
    prompts = ([1, 2, 3, 4], [1, 2, 5], [1, 2, 3])
    rows = [TokenizedRow(torch.tensor(ids), [], None, None, "") for ids in prompts]
    assert shared_prefix(rows) == 2
    assert shared_prefix(rows[::2]) == 3


def test_standard_error_is_over_prompts() -> None:
    mean, error = mean_and_error(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert mean == 0.5
    assert error == pytest.approx(0.5)


def test_correlation_ignores_what_prompts_differ_in() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    left = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    right = torch.tensor([7.0, 8.0, 9.0, -3.0, -2.0, -1.0])
    assert correlation_within_prompts(left, right, groups) == pytest.approx(1.0)
    assert correlation_within_prompts(left, -right, groups) == pytest.approx(-1.0)


def test_implicit_reward_at_raos_optimum_is_the_reward() -> None:
    rewards, prompt = torch.tensor([0.2, 0.9]), torch.tensor([1.5, 1.5])
    run = Run(Method("RAO", "rao", 0.1, 1e-5), Path(), 0.0, 0, 4.0, {})
    seen = Implicit(rewards, rewards / 0.1 - 4.0 - prompt, prompt, torch.tensor([0, 0]))
    torch.testing.assert_close(implicit_reward(run, seen), rewards)
