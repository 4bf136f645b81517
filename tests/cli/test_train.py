"""`rao-kernels train` on a tiny model: flags, YAML, files written, errors in one line."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rao_kernels.cli.main import main
from rao_kernels.cli.train import TYPES
from rao_kernels.data import load_records, split_records
from rao_kernels.train import prepare
from rao_kernels.train.config import RunConfig
from tests.train.tiny import save_tiny, tiny_rows, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    write_jsonl(tmp_path / "data.jsonl", tiny_rows(20))
    return tmp_path


def flags(folder: Path, *more: str) -> list[str]:
    return [
        *("train", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output_dir", str(folder / "out"), "--use_cpu", "--max_steps", "2"),
        *("--disable_tqdm", "true", "--logging_steps", "1", *more),
    ]


def test_writes_model_metrics_and_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(folder, "--eval_fraction", "0.3")) == 0
    printed = capsys.readouterr().out
    assert "target log-ratios (nats)" in printed
    assert "held-out" in printed
    assert "peak memory" in printed
    entries = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").open()]
    evaluations = [entry["step"] for entry in entries if "eval_loss" in entry]
    assert evaluations == [0, 2]
    assert (folder / "out" / "run.png").stat().st_size > 5000
    AutoModelForCausalLM.from_pretrained(folder / "out")


def test_flags_override_the_file(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        f"""
model: {folder / "model"}
data: [{folder / "data.jsonl"}]
output_dir: {folder / "out"}
loss: ipo
loss_kwargs: {{tau: 0.3}}
max_steps: 5
prefix_length: auto
grad_tolerance: 0.001
limit: 8
eval_fraction: 0.0
lora_r: 2
learning_rate: 1e-3
use_cpu: true
disable_tqdm: true
eval_data: null
"""
    )
    assert main(["train", "--config", str(folder / "run.yaml"), "--max-steps", "1"]) == 0
    state = json.loads((folder / "out" / "rao_state.json").read_text())
    assert (state["loss"], state["tau"]) == ("ipo", 0.3)
    assert (folder / "out" / "checkpoint-1" / "adapter_model.safetensors").is_file()
    assert "eval_loss" not in (folder / "out" / "metrics.jsonl").read_text()


def test_held_out_file_and_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = write_jsonl(folder / "eval.jsonl", tiny_rows(25)[20:])
    more = ("--eval_data", str(held_out), "--save_steps", "1")
    assert main(flags(folder, *more)) == 0
    printed = capsys.readouterr().out
    assert "resuming" not in printed and "no complete checkpoint" not in printed
    assert main(flags(folder, *more, "--max_steps", "3")) == 0
    assert "resuming from" in capsys.readouterr().out
    assert (folder / "out" / "checkpoint-3" / "complete.json").is_file()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run on other data is refused before the reference scores them."""
    assert main(flags(folder)) == 0
    before = contents(folder / "out")
    capsys.readouterr()
    for more in ((), ("--max_steps", "1"), ("--resume_from_checkpoint", "auto")):
        assert main(flags(folder, *more)) == 0
        printed = capsys.readouterr().out
        assert "this run is finished" in printed
        assert str(folder / "out") in printed
        assert contents(folder / "out") == before
    monkeypatch.setattr(prepare, "fill_cache", lambda *_, **__: pytest.fail("scored"))
    assert main(flags(folder, "--limit", "8")) == 2
    assert "training data is" in capsys.readouterr().err
    assert {path: contents(folder / "out")[path] for path in before} == before


def test_a_finished_run_goes_on_for_more_epochs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = ("--max_steps", "-1", "--num_train_epochs")
    saving = ("--per_device_train_batch_size", "8", "--save_strategy", "epoch")
    assert main(flags(folder, *saving, *epochs, "1")) == 0
    done = json.loads((folder / "out" / "finished.json").read_text())
    capsys.readouterr()
    assert main(flags(folder, *saving, *epochs, "1")) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert main(flags(folder, *saving, *epochs, "2")) == 0
    assert "resuming from" in capsys.readouterr().out
    again = json.loads((folder / "out" / "finished.json").read_text())
    assert again == {name: 2 * value for name, value in done.items()}


def test_a_run_that_ended_between_its_last_checkpoint_and_its_model_is_completed(
    folder: Path,
) -> None:
    assert main(flags(folder)) == 0
    out = folder / "out"
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    (out / "finished.json").unlink()
    assert main(flags(folder)) == 0
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "finished.json").is_file()


def test_the_command_of_the_page_on_training(folder: Path) -> None:
    """Without a GPU too; --max_steps is all that is added."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    found = re.search(r"^rao-kernels (train --model DIR_OR_NAME .*)$", page, re.MULTILINE)
    assert found is not None
    words = {"DIR_OR_NAME": "model", "rows.jsonl": "data.jsonl", "out": "out"}
    command = [str(folder / words[w]) if w in words else w for w in found[1].split()]
    assert "--bf16" in command
    assert main([*command, "--max_steps", "1", "--disable_tqdm", "true"]) == 0
    AutoModelForCausalLM.from_pretrained(folder / "out")


def ties(count: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"ask {i}", "responses": ["a", "b"], "rewards": [1, 1]} for i in range(count)
    ]


@pytest.mark.parametrize(
    ("fraction", "reason"),
    [("0.5", "no record is left for the loss"), ("1e-9", "none of the prompts")],
)
def test_a_useless_automatic_split_only_warns(
    folder: Path, capsys: pytest.CaptureFixture[str], fraction: str, reason: str
) -> None:
    """Of these rows only those that train have an order."""
    rows = [{"prompt": f"ask {i}", "responses": ["a", "b"], "rewards": [0, 1]} for i in range(12)]
    _, held_out = split_records(load_records(rows), float(fraction))
    prompts = [record.prompt for record in held_out]
    rows = [row | {"rewards": [1, 1]} if row["prompt"] in prompts else row for row in rows]
    write_jsonl(folder / "data.jsonl", rows)
    assert main(flags(folder, "--loss", "sigmoid", "--eval_fraction", fraction)) == 0
    said = capsys.readouterr()
    assert reason in said.err
    assert "without evaluation" in said.err
    assert "--eval_data" in said.err
    assert "eval_loss" not in (folder / "out" / "metrics.jsonl").read_text()


def test_a_single_held_out_record_cannot_be_evaluated_by_kto(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its KL term reads the responses to another prompt; training has enough of them."""
    rows = [{"prompt": f"ask {i}", "completion": "a", "label": i % 2 == 0} for i in range(30)]
    train, held_out = split_records(load_records(rows), 0.3)
    kept = [one.prompt for one in [*train, held_out[0]]]
    write_jsonl(folder / "data.jsonl", [row for row in rows if row["prompt"] in kept])
    assert main(flags(folder, "--loss", "kto", "--eval_fraction", "0.3", "--max_steps", "1")) == 0
    said = capsys.readouterr().err
    assert "without evaluation" in said and "only record" in said


def test_useless_held_out_data_that_was_asked_for_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write_jsonl(folder / "eval.jsonl", ties(4))
    assert main(flags(folder, "--loss", "sigmoid", "--eval_data", str(held_out))) == 2
    assert "no record is left for the loss 'sigmoid'" in capsys.readouterr().err
    best = ("--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "steps")
    assert main(flags(folder, "--eval_fraction", "1e-9", *best)) == 2
    assert "load_best_model_at_end" in capsys.readouterr().err
    assert main(flags(folder, "--eval_fraction", "1e-9", "--eval_strategy", "epoch")) == 2
    assert "eval_strategy 'epoch' needs" in capsys.readouterr().err


def test_a_loss_that_overflows_saves_no_model(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an offset that is refused before, where the check is on."""
    monkeypatch.setattr("rao_kernels.train.checks.check_hyperparameters", lambda _: None)
    overflowing = ("--log_z0", "1e30", "--eval_fraction", "0", "--max_steps", "1")
    assert main(flags(folder, *overflowing)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rao-kernels train: error: training diverged at step 1: the loss is ")
    assert "checkpoint is none" in error
    assert not list((folder / "out").glob("**/model.safetensors"))


def test_another_run_in_a_used_folder_ends_before_it_begins(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAO to the end, then SFT into the same folder, plainly or as if resumed: the model is not
    even loaded, or the checkpoint not taken; what RAO left stays."""
    saving = ("--save_steps", "1", "--save_total_limit", "2")
    assert main(flags(folder, *saving)) == 0
    out = folder / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    resumed = ("--loss", "sft", "--resume_from_checkpoint")
    for value in ("auto", "True", str(out / "checkpoint-1")):
        assert main(flags(folder, *saving, *resumed, value)) == 2
        assert 'loss is "sft", was "rao"' in capsys.readouterr().err
    monkeypatch.setattr(
        "rao_kernels.cli.train.make_loss_trainer", lambda *_, **__: pytest.fail("data was loaded")
    )
    for other in (("--loss", "sft"), ("--learning_rate", "0.5")):
        assert main(flags(folder, *saving, *other)) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "`output_dir`" in error
        assert "start this one in another output_dir" in error
    assert "learning_rate is 0.5, was 1e-06" in error
    (out / "identity.json").rename(folder / "identity.json")
    for number in (1, 2):
        (out / f"checkpoint-{number}" / "complete.json").rename(folder / f"{number}.json")
    assert main(flags(folder, *saving)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint-1, checkpoint-2" in error
    assert "remove the folder" in error
    (folder / "identity.json").rename(out / "identity.json")
    for number in (1, 2):
        (folder / f"{number}.json").rename(out / f"checkpoint-{number}" / "complete.json")
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before


def test_a_wrong_checkpoint_is_found_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(folder, "--resume_from_checkpoint", str(folder / "none"))) == 2
    assert "incomplete or no checkpoint" in capsys.readouterr().err
    assert not (folder / "out" / "ref_cache").exists()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--model", "/nope"), "`model`: expected a folder"),
        (("--eval_fraction", "0", "--eval_strategy", "epoch"), "that eval_strategy 'epoch' needs"),
        (("--limit", "3", "--eval_fraction", "0.999999"), "which holds out all 3"),
        (("--learning_rate", "-1"), "`learning_rate`"),
        (("--output_dir", "/proc/nothing"), "`output_dir`"),
        (("--fp16",), "`fp16`: expected False on a CPU"),
        (("--learning_rat", "1"), "Did you mean --learning_rate?"),
        (("--loss", "ppo"), "Train it with `rao-kernels online`"),
        (("--loss", "grpo"), "with `rao-kernels generate --old_logps`"),
        (("--loss", "roa"), "Did you mean 'rao'?"),
        (("--limit", "1", "--eval_fraction", "1"), "`eval_fraction`"),
        (("--lora_r", "-1"), "`lora_r`"),
        (("--lora_r", "2", "--lora_target_modules", "nope"), "such as q_proj, k_proj"),
        (("--beta", "0"), "`beta`"),
        (("--log_z0", "many"), "`log_z0`: expected 'auto', 'logmeanexp' or a finite number"),
        (("--prefix_length", "0"), "`prefix_length`: expected 'auto' or at least 1"),
        (("--grad_tolerance", "1"), "`grad_tolerance`: expected 'auto' or a probability"),
        (("--label_smoothing_factor", "0.1"), "`label_smoothing_factor`"),
        (
            ("--max_length", "11", "--truncate_responses"),
            "data.jsonl:5: its prompt has 11 tokens",
        ),
        (("--ref_cache", "require"), "no reference cache for this run"),
    ],
)
def test_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], problem: str
) -> None:
    assert main(flags(folder, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rao-kernels train: error: ")
    assert problem in error


def test_help_begins_with_what_is_required_and_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    usage, required, own, inherited = re.split(r"^(?:required|options.*):$", printed, flags=re.M)
    assert len(usage.splitlines()) < 5 and "--model MODEL --data DATA" in usage
    assert options_of(required) == ["--model", "--data"]
    ours = (*TYPES, RunConfig)
    fields = [name for one in ours for name in inspect.get_annotations(one)]
    expected = [f"--{name}" for name in fields if name not in ("model", "data")]
    assert set(options_of(own)) == {"-h", *expected, "--config"}
    assert {"--output_dir", "--num_train_epochs", "--bf16"} <= set(options_of(inherited))
    assert not {"--do_train", "--do_eval", "--do_predict"} & set(options_of(inherited))


def options_of(text: str) -> list[str]:
    return re.findall(r"^  (--?\w+)", text, re.M)


@pytest.mark.parametrize(
    "more",
    [
        ("--logging_steps", "0"),
        ("--warmup_steps", "-1"),
        ("--gradient_accumulation_steps", "0"),
        ("--loss", '{"rao": -1}'),
    ],
)
def test_options_of_transformers_end_in_one_line_too(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert main(flags(folder, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rao-kernels train: error: `")


def test_yaml_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, problem in {
        "learning-rat: 1": "Did you mean --learning-rate?",
        "- a": "a YAML mapping of options, got list",
        "a: [": "a YAML file, got",
    }.items():
        (folder / "bad.yaml").write_text(text)
        assert main(flags(folder, "--config", str(folder / "bad.yaml"))) == 2
        assert problem in capsys.readouterr().err
    assert main(flags(folder, "--config", str(folder / "none.yaml"))) == 2
