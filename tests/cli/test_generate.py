"""`rao-kernels generate`: the same file however often it was stopped, and training reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.cli.generate import run
from rao_kernels.data import load_records
from rao_kernels.errors import DataError, InputError
from rao_kernels.generation import Sample, SamplingOptions, TransformersSampler
from rao_kernels.hf import attach_fused_head
from rao_kernels.train import RAOConfig, RAOTrainer
from rao_kernels.train.model import load_model
from tests.train.tiny import save_tiny, tiny_model, tiny_tokenizer, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    words = ["ab", "c", "de fg", "h", "ijk", "l", "m n o"]
    rows = [{"prompt": f"say {w}", "gold": w, "more": i} for i, w in enumerate(words)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    return tmp_path


def flags(folder: Path, out: str, *more: str) -> list[str]:
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output", str(folder / out), "--max_new_tokens", "6", "--batch_size", "3", *more),
    ]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_keep_their_columns_and_say_who_sampled(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(flags(folder, "out.jsonl", "--responses", "2", "--temperature", "0.7", "--seed", "5"))
    found, given = records(folder / "out.jsonl"), records(folder / "data.jsonl")
    assert [{k: one[k] for k in row} for one, row in zip(found, given, strict=True)] == given
    tokenizer = tiny_tokenizer()
    for one in found:
        assert len(one["responses"]) == len(one["finished"]) == 2
        settings = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_new_tokens": 6, "seed": 5}
        assert settings.items() <= one["generator"].items()
        assert one["generator"]["model"] == str(folder / "model")
        # Cut ones have all the tokens there may be.
        for text, finished in zip(one["responses"], one["finished"], strict=True):
            assert finished or len(tokenizer(text).input_ids) <= 6
    assert "7 records, with 2 responses each" in capsys.readouterr().out


class Interrupted(TransformersSampler):
    """Presses Ctrl-C, or fails, in the second batch."""

    calls = 0
    error: type[BaseException] = KeyboardInterrupt

    def sample(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, *, seed: int
    ) -> list[list[Sample]]:
        type(self).calls += 1
        if type(self).calls == 2:
            raise self.error
        return super().sample(prompts, options, seed=seed)


def test_a_stopped_run_goes_on_to_the_same_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(flags(folder, "straight.jsonl", "--old_logps"))
    expected = (folder / "straight.jsonl").read_bytes()
    path = folder / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("rao_kernels.generation.engines.TransformersSampler", Interrupted)
        Interrupted.calls = 0
        with pytest.raises(KeyboardInterrupt, match=r"3 of 7 records are in .*same command goes"):
            run(flags(folder, "out.jsonl", "--old_logps"))
    assert path.read_bytes() == b"".join(expected.splitlines(keepends=True)[:3])
    # Killed in the middle of a line of the second batch.
    path.write_bytes(expected[: expected.index(b"de fg") + 900])
    seen: list[int] = []
    once = TransformersSampler.sample

    def counted(self: Any, prompts: Any, options: Any, *, seed: int) -> Any:
        seen.append(len(prompts))
        return once(self, prompts, options, seed=seed)

    monkeypatch.setattr(TransformersSampler, "sample", counted)
    run(flags(folder, "out.jsonl", "--old_logps"))
    assert path.read_bytes() == expected
    assert sum(seen) < 7
    # A finished file stays, and other settings do not touch it.
    seen.clear()
    run(flags(folder, "out.jsonl", "--old_logps"))
    with pytest.raises(InputError, match="temperature is 0.5, was 1.0"):
        run(flags(folder, "out.jsonl", "--old_logps", "--temperature", "0.5"))
    write_jsonl(folder / "data.jsonl", [{"prompt": "other"}])
    with pytest.raises(InputError, match="sha256 of the prompts"):
        run(flags(folder, "out.jsonl", "--old_logps"))
    assert seen == [] and path.read_bytes() == expected


def test_the_seed_decides_and_batches_differ(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", [{"prompt": "same"}] * 6)
    for name, seed in (("a", "0"), ("b", "1")):
        run(flags(folder, f"{name}.jsonl", "--seed", seed))
    first, other = (
        [one["responses"] for one in records(folder / f"{name}.jsonl")] for name in "ab"
    )
    assert first != other
    assert first[:3] != first[3:]


def test_responses_are_replaced_only_when_asked(folder: Path) -> None:
    rows = [{"prompt": "a", "responses": ["b"], "rewards": [0.5], "gold": "g"}]
    write_jsonl(folder / "data.jsonl", rows)
    with pytest.raises(InputError, match=r"data\.jsonl:1 has responses, rewards"):
        run(flags(folder, "out.jsonl"))
    assert not (folder / "out.jsonl").exists()
    run(flags(folder, "out.jsonl", "--overwrite"))
    (found,) = records(folder / "out.jsonl")
    assert len(found["responses"]) == 4 and "rewards" not in found and found["gold"] == "g"


@pytest.mark.parametrize(
    ("more", "argument"),
    [
        (("--old_logps", "--engine", "vllm"), "engine"),
        (("--old_logps", "--temperature", "0"), "temperature"),
        (("--responses", "0"), "responses"),
        (("--output", "out.json"), "output"),
    ],
)
def test_mistakes_are_found(folder: Path, more: tuple[str, ...], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        run(flags(folder, "out.jsonl", *more))
    assert caught.value.argument == argument
    assert not (folder / "out.jsonl").exists()


def test_a_prompt_that_cannot_be_encoded_is_found_before_sampling(folder: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}]
    write_jsonl(folder / "data.jsonl", rows)
    with pytest.raises(DataError, match=r"data\.jsonl:2: a chat prompt"):
        run(flags(folder, "out.jsonl"))
    assert not (folder / "out.jsonl").exists()


def test_old_logps_are_the_models(folder: Path) -> None:
    run(flags(folder, "out.jsonl", "--old_logps"))
    found = records(folder / "out.jsonl")
    model = attach_fused_head(tiny_model())
    one = found[2]
    for ids, logps in zip(one["response_ids"], one["old_logps"], strict=True):
        whole = torch.tensor([[*one["prompt_ids"], *ids]])
        with torch.no_grad():
            scores = model(whole).logits[0].log_softmax(-1)
        rows = torch.arange(len(one["prompt_ids"]) - 1, whole.shape[1] - 1)
        assert logps == pytest.approx(scores[rows, torch.tensor(ids)].tolist(), abs=2e-5)


@pytest.mark.parametrize("loss", ["rao", "grpo"])
def test_training_reads_the_records_once_they_have_rewards(folder: Path, loss: str) -> None:
    run(flags(folder, "out.jsonl", *(["--old_logps"] if loss == "grpo" else [])))
    found = records(folder / "out.jsonl")
    scored = [{**one, "rewards": [float(len(r)) for r in one["responses"]]} for one in found]
    args = RAOConfig(
        output_dir=str(folder / "run"),
        loss=loss,
        use_cpu=True,
        max_steps=1,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=7,
        logging_steps=1,
    )
    data = str(write_jsonl(folder / "scored.jsonl", scored))
    trainer = RAOTrainer(
        tiny_model(), args=args, train_dataset=data, processing_class=tiny_tokenizer()
    )
    trainer.train()
    assert trainer.state.global_step == 1
    rows = [trainer.train_dataset.rows[i] for i in range(7)]
    ids = [tiny_tokenizer()(one["prompt"]).input_ids for one in found]
    assert [row.prompt.tolist() for row in rows] == [[1, *one] for one in ids]
    if loss == "grpo":
        assert [[ids.tolist() for ids in row.responses] for row in rows] == [
            one["response_ids"] for one in found
        ]
        # The policy has not moved: the ratios to the one that sampled are 1.
        (entry,) = [one for one in trainer.state.log_history if "loss" in one]
        assert entry["ratio/mean"] == pytest.approx(1, abs=1e-5)
        assert entry["clip_ratio/high_mean"] == entry["clip_ratio/low_mean"] == 0


@pytest.mark.parametrize(("temperature", "ratio"), [("1", True), ("0.7", False)])
def test_files_say_the_temperature_of_their_logps(
    folder: Path, temperature: str, ratio: bool
) -> None:
    run(flags(folder, "out.jsonl", "--old_logps", "--temperature", temperature))
    for one in load_records(folder / "out.jsonl"):
        assert one.sampled is not None
        assert one.sampled.logp_temperature == float(temperature)
    found = records(folder / "out.jsonl")
    scored = [{**one, "rewards": [float(len(r)) for r in one["responses"]]} for one in found]
    data = str(write_jsonl(folder / "scored.jsonl", scored))
    args = RAOConfig(output_dir=str(folder / "run"), loss="grpo", use_cpu=True, disable_tqdm=True)
    given: Any = {"args": args, "train_dataset": data, "processing_class": tiny_tokenizer()}
    if ratio:
        RAOTrainer(tiny_model(), **given)
        return
    with pytest.raises(DataError, match=r"scored\.jsonl:1: its `old_logps` are of temperature"):
        RAOTrainer(tiny_model(), **given)


def test_prompts_that_are_too_long_are_found_before_the_first_is_sampled(folder: Path) -> None:
    long = {"prompt": "x" * 200}
    write_jsonl(folder / "data.jsonl", [*records(folder / "data.jsonl"), long])
    with pytest.raises(InputError, match="`max_new_tokens`: expected at most"):
        run(flags(folder, "out.jsonl", "--max_new_tokens", "9999"))
    assert not (folder / "out.jsonl").exists()


def test_other_weights_behind_vllm_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM loads them itself: the files tell."""

    class InMemory(TransformersSampler):
        def __init__(self, model: str, tokenizer: Any, **_: Any) -> None:
            super().__init__(load_model(model, torch.float32), tokenizer)

    monkeypatch.setattr("rao_kernels.generation.engines.VLLMSampler", InMemory)
    vllm = ("--engine", "vllm")
    run(flags(folder, "out.jsonl", *vllm))
    run(flags(folder, "out.jsonl", *vllm))
    save_tiny(folder / "model", 1)
    with pytest.raises(InputError, match="sha256 of the model is .* was"):
        run(flags(folder, "out.jsonl", *vllm))


def test_tools_are_handed_on_as_objects(folder: Path) -> None:
    """Whatever the file has: rules and reward models read them."""
    tools = [{"name": "add"}]
    save_tiny(folder / "model", chat=True)
    write_jsonl(folder / "data.jsonl", [{"prompt": "sum", "tools": json.dumps(tools)}])
    run(flags(folder, "out.jsonl"))
    assert [one["tools"] for one in records(folder / "out.jsonl")] == [tools]
