"""The README.md that `save_model` leaves beside a model."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard
from peft import LoraConfig

from rao_kernels.data import dataset_statistics
from rao_kernels.train import RAOTrainer
from tests.train import online_tools, test_reward_trainer
from tests.train.test_trainer import config, trainer
from tests.train.tiny import save_tiny, tiny_model, tiny_rows, tiny_tokenizer


def test_a_whole_model_is_saved_with_a_card(tmp_path: Path) -> None:
    rows = tiny_rows(7)
    run = trainer(tmp_path, rows, eval_dataset=tiny_rows(3), eval_strategy="epoch", beta=0.25)
    run.model.config._name_or_path = "someone/some-model"
    run.train()
    run.save_model()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "someone/some-model"
    assert card.data.library_name == "transformers"
    lines = card.text.splitlines()
    assert f"| hyperparameters of the loss | {shown(run)} |" in lines
    assert "beta=0.25" in shown(run) and "log_z0=1.8" in shown(run)
    responses = sum(len(row["responses"]) for row in rows)  # type: ignore[arg-type, misc]
    assert f"| training data | 7 prompts with {responses} responses |" in lines
    assert "| steps | 4 |" in lines and "| prompts per step | 2 |" in lines
    loss = next(e["eval_loss"] for e in run.state.log_history if "eval_loss" in e)
    assert f"| `eval_loss` | {loss:.4g} | {loss:.4g} |" in lines
    assert "`rao/mse`" not in card.text, "metrics of training are shown without an evaluation alone"


def shown(run: RAOTrainer) -> str:
    return ", ".join(f"{key}={value}" for key, value in run.hyper.items())


def test_metrics_of_training_where_nothing_was_held_out(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    run.save_model(str(tmp_path / "elsewhere"))
    text = (tmp_path / "elsewhere" / "README.md").read_text()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert f"| `loss` | {losses[0]:.4g} | {losses[-1]:.4g} |" in text


def test_a_local_model_is_named_by_its_folder_alone(tmp_path: Path) -> None:
    """A path of this machine means nothing to a reader, and base_model must be a name."""
    folder = save_tiny(tmp_path / "secret" / "base")
    run = RAOTrainer(folder, args=config(tmp_path / "out"), train_dataset=tiny_rows(3))
    run.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`base` trained with the loss `rao`" in text
    assert "secret" not in text and "base_model" not in text


def test_checkpoints_and_adapters_keep_what_they_have(tmp_path: Path) -> None:
    run = trainer(tmp_path / "whole", save_strategy="steps", save_steps=2)
    run.train()
    assert not (tmp_path / "whole" / "checkpoint-2" / "README.md").exists()
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    lora = RAOTrainer(
        tiny_model(),
        args=config(tmp_path / "lora"),
        train_dataset=tiny_rows(3),
        processing_class=tiny_tokenizer(),
        peft_config=adapter,
    )
    lora.save_model()
    card = ModelCard.load(tmp_path / "lora" / "README.md")
    assert card.data.library_name == "peft"
    assert not (tmp_path / "lora" / "checkpoint-2" / "README.md").exists()


def test_the_card_of_an_adapter_says_how_it_was_trained_too(tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    run = RAOTrainer(
        tiny_model(),
        args=config(tmp_path),
        train_dataset=tiny_rows(3),
        processing_class=tiny_tokenizer(),
        peft_config=adapter,
    )
    for _ in range(2):
        run.save_model()
        card = ModelCard.load(tmp_path / "README.md")
        assert "rao-kernels" in card.data.tags and "lora" in card.data.tags
        assert "trained with the loss `rao`" in card.text
        assert card.text.count("| training data | 3 prompts") == 1
        assert card.text.count("- PEFT ") == 1


def test_the_command_is_given_without_its_tokens(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save_model()
    assert "## Command" not in (tmp_path / "README.md").read_text()
    given = ["--beta", "0.2", "--hub_token", "hf_a", "--push-to-hub-token=hf_b", "--limit", "9 x"]
    run.command = ["rao-kernels", "train", *given]
    run.save_model()
    text = (tmp_path / "README.md").read_text()
    shown = "--beta 0.2 --hub_token ... --push-to-hub-token=... --limit '9 x'"
    assert f"rao-kernels train {shown}\n" in text
    assert "hf_" not in text


def test_statistics_of_tokens_are_among_the_metrics(tmp_path: Path) -> None:
    run = trainer(tmp_path, tiny_rows(4), eval_dataset=tiny_rows(2), loss="sft", token_stats=True)
    run.train()
    run.evaluate()
    run.save_model()
    text = (tmp_path / "README.md").read_text()
    assert "`eval_mean_token_accuracy`" in text and "`eval_entropy`" in text
    for other in ("eval_runtime", "eval_steps_per_second", "`epoch`", "learning_rate`"):
        assert other not in text


def table(folder: Path) -> dict[str, str]:
    lines = (folder / "README.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {one[0]: one[1] for one in cells if len(one) == 2}


def test_statistics_of_the_data(tmp_path: Path) -> None:
    rows = tiny_rows(7)
    run = trainer(tmp_path, rows)
    run.save_model()
    shown, found = table(tmp_path), dataset_statistics(run.train_dataset.rows)
    rewards = [value for row in rows for value in row["rewards"]]  # type: ignore[attr-defined]
    mean, most = sum(rewards) / len(rewards), max(rewards)
    assert shown["rewards"].startswith(f"mean {mean:.6g}, ")
    assert shown["rewards"].endswith(f", {most:.6g}")
    assert shown["prompt tokens"] == str(found.prompt_tokens)
    assert shown["response tokens"] == str(found.response_tokens)
    assert shown["prompts whose rewards are all equal"] == f"{found.equal_rewards:.1%}"


def test_statistics_of_pairs_are_those_of_their_margins(tmp_path: Path) -> None:
    rows = [
        {"prompt": "say b", "chosen": "ab", "rejected": "c", "margin": 0.5},
        {"prompt": "say d", "chosen": "ef", "rejected": "ghij", "margin": 1.5},
    ]
    run = test_reward_trainer.trainer(tmp_path / "with", rows)
    run.save_model()
    shown = table(tmp_path / "with" / "out")
    assert shown["margins"].startswith("mean 1, sd 0.5; ") and "rewards" not in shown
    assert shown["pairs per step"] == f"{run.args.train_batch_size}"
    assert shown["training data"] == "2 pairs" and "response tokens" in shown
    bare = [{key: value for key, value in row.items() if key != "margin"} for row in rows]
    test_reward_trainer.trainer(tmp_path / "without", bare).save_model()
    shown = table(tmp_path / "without" / "out")
    assert "margins" not in shown and shown["margin"] == "none"


def test_mean_rewards_of_the_first_and_the_last_round(tmp_path: Path) -> None:
    run = online_tools.make(tmp_path, rounds=3, save_strategy="steps", save_steps=4)
    run.save_model(str(tmp_path / "before"))
    assert "mean reward" not in table(tmp_path / "before")
    run.train()
    run.save_model()
    means = online_tools.logged(run, "reward/mean")
    # Two steps are logged of each round, whose first has the mean of the round.
    text = f"{means[0]:.6g} in the first round, {means[-1]:.6g} in the last"
    assert table(tmp_path)["mean reward"] == text
    assert means[0] != means[-1]
    (tmp_path / "rollouts" / "round-00000.jsonl").unlink()
    again = online_tools.make(tmp_path, rounds=3, save_strategy="steps", save_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    again.save_model()
    assert table(tmp_path)["mean reward"] == text
