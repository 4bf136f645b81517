"""`VLLMSampler` over a stand-in for vLLM, which records what it is given."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rao_kernels.errors import InputError, MissingDependencyError
from rao_kernels.generation import SamplingOptions, VLLMSampler, make_sampler

from ..train.tiny import save_tiny, tiny_model, tiny_tokenizer


@dataclass
class Engine:
    """Stands in for `vllm.LLM`; a response is the prompt's last token, the count, and an end."""

    settings: dict[str, Any]
    calls: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def llm_engine(self) -> Any:
        return SimpleNamespace(model_config=SimpleNamespace(max_model_len=400))

    def generate(self, prompts: Any, settings: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.calls.append((prompts, settings))
        return [
            SimpleNamespace(outputs=[self.answer(prompt, i) for i in range(own.n)])
            for prompt, own in zip(prompts, settings, strict=True)
        ]

    def answer(self, prompt: Any, i: int) -> Any:
        start = prompt["prompt_token_ids"][-1]
        done = i % 2 == 0
        ids = (start, 5 + i, 2) if done else (start, 5 + i)
        return SimpleNamespace(token_ids=ids, finish_reason="stop" if done else "length")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm")
    module.LLM = lambda **settings: Engine(settings)  # type: ignore[attr-defined]
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_what_the_engine_is_given_and_what_comes_back(vllm: ModuleType, tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model"))
    tokenizer = tiny_tokenizer()
    sampler = make_sampler("vllm", folder, tokenizer)
    assert isinstance(sampler, VLLMSampler)
    assert sampler.engine.settings["model"] == folder
    assert sampler.engine.settings["generation_config"] == "vllm"
    options = SamplingOptions(
        responses=2, max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=5, batch_size=2
    )
    found = sampler.sample([[1, 7], [1, 8], [1, 9]], options, seed=4)
    calls = sampler.engine.calls
    given = [prompt["prompt_token_ids"] for prompts, _ in calls for prompt in prompts]
    assert given == [[1, 7], [1, 8], [1, 9]]
    assert [len(prompts) for prompts, _ in calls] == [2, 1]
    settings = [one for _, own in calls for one in own]
    for one in settings:
        assert (one.n, one.max_tokens, one.temperature, one.top_p) == (2, 9, 0.7, 0.9)
        assert (one.top_k, one.stop_token_ids, one.detokenize) == (5, [2], False)
    own_seeds = [one.seed for one in settings]
    assert len(set(own_seeds)) == 3
    assert [[one.ids for one in group] for group in found] == [
        [[last, 5, 2], [last, 6]] for last in (7, 8, 9)
    ]
    assert [[one.finished for one in group] for group in found] == [[True, False]] * 3
    assert found[0][0].text == tokenizer.decode([7, 5])
    # The same call asks for the same; another seed for others; a top_k of 0 is vLLM's -1.
    sampler.engine.calls.clear()
    sampler.sample([[1, 7], [1, 8], [1, 9]], options, seed=4)
    assert [one.seed for _, own in sampler.engine.calls for one in own] == own_seeds
    sampler.engine.calls.clear()
    sampler.sample([[1, 7]], SamplingOptions(), seed=5)
    ((_, (last,)),) = sampler.engine.calls
    assert last.top_k == -1 and last.seed not in own_seeds


def test_wrong_model_and_a_missing_package(
    vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="vLLM loads itself"):
        make_sampler("vllm", tiny_model(), tiny_tokenizer())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match="pip install vllm"):
        make_sampler("vllm", "folder", tiny_tokenizer())


def test_prompts_that_are_too_long_are_found_before_sampling(
    vllm: ModuleType, tmp_path: Path
) -> None:
    sampler = make_sampler("vllm", str(save_tiny(tmp_path / "model")), tiny_tokenizer())
    sampler.check([[1] * 390, [1]], SamplingOptions(max_new_tokens=10))
    with pytest.raises(InputError, match="`max_new_tokens`: expected at most 10"):
        sampler.check([[1] * 390, [1]], SamplingOptions(max_new_tokens=11))
