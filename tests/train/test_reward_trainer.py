"""`RewardTrainer`: its loss beside TRL's, steps over micro-batches, what it saves and reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from rao_kernels.data import Record
from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import Candidate, RewardModelScorer
from rao_kernels.train import RewardConfig, RewardTrainer
from rao_kernels.train.reward.report import measure
from tests.rewards.models import last_token_rewards, save_tiny_reward_model, tiny_reward_model

from .tiny import save_tiny, tiny_rows, tiny_tokenizer, write_jsonl

WORDS = [("good day", "no"), ("it is a cat", "what"), ("yes", "a dog. or not"), ("b", "aaa")]


def pairs(**columns: list[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": f"ask {number}"}],
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
        }
        for number, (good, bad) in enumerate(WORDS)
    ]
    for name, values in columns.items():
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    return rows


def config(folder: Path, **settings: Any) -> RewardConfig:
    given: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_steps": 2,
    }
    return RewardConfig(**{**given, **settings})


def trainer(folder: Path, data: Any, model: Any = None, **settings: Any) -> RewardTrainer:
    model = tiny_reward_model() if model is None else model
    evaluation = settings.pop("eval_dataset", None)
    return RewardTrainer(
        model,
        args=config(folder, **settings),
        train_dataset=data,
        eval_dataset=evaluation,
        processing_class=tiny_tokenizer(chat=True),
    )


def batch_loss(run: RewardTrainer) -> torch.Tensor:
    rows = [run.train_dataset[number] for number in range(len(run.train_dataset))]
    run.model.train()
    loss: torch.Tensor = run.compute_loss(run.model, run.data_collator(rows))
    return loss


def expected_rewards(model: LlamaForSequenceClassification) -> torch.Tensor:
    tokenizer = tiny_tokenizer(chat=True)
    texts = [
        f"<u>ask {number}</s>\n<a>{answer}</s>\n"
        for number, pair in enumerate(WORDS)
        for answer in pair
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return torch.tensor(last_token_rewards(model, ids), dtype=torch.float64).view(-1, 2)


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("margins", [None, [0.5, 0.0, -1.0, 2.0]])
def test_the_loss_is_that_of_the_paper(
    tmp_path: Path, center: float, margins: list[float] | None
) -> None:
    data = pairs() if margins is None else pairs(margin=margins)
    run = trainer(tmp_path, data, center_rewards_coefficient=center)
    rewards = expected_rewards(tiny_reward_model())
    gap = rewards[:, 0] - rewards[:, 1] - torch.tensor(margins or [0.0] * 4)
    expected = (-logsigmoid(gap) + center * rewards.sum(1).square()).mean()
    torch.testing.assert_close(batch_loss(run).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margins", [None, [0.5, 0.0, -1.0, 2.0]])
def test_the_loss_and_the_gradients_are_trls(tmp_path: Path, margins: list[float] | None) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    data = pairs() if margins is None else pairs(margin=margins)
    ours = trainer(tmp_path, data, center_rewards_coefficient=0.01)
    theirs = trl.RewardTrainer(
        model=tiny_reward_model(),
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            center_rewards_coefficient=0.01,
        ),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=tiny_tokenizer(chat=True),
    )
    batch = theirs.data_collator([theirs.train_dataset[n] for n in range(4)])
    theirs.model.train()
    expected = theirs.compute_loss(theirs.model, batch)
    found = batch_loss(ours)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found.backward()
    expected.backward()
    for (name, own), (_, other) in zip(
        ours.model.named_parameters(), theirs.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_step_is_that_of_one_batch_however_it_is_cut(tmp_path: Path) -> None:
    weights = []
    # Three micro-batches of 2, 2 and 1 pairs: a mean of means would weigh the last twice.
    rows = [*pairs(), pairs()[0] | {"chosen": [{"role": "assistant", "content": "e"}]}]
    for size, parts in ((5, 1), (2, 3)):
        run = trainer(
            tmp_path / str(size),
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=1,
            optim="sgd",
            train_sampling_strategy="sequential",
        )
        run.train()
        weights.append(run.model.state_dict())
    start = tiny_reward_model().state_dict()
    assert any((weights[0][name] != start[name]).any() for name in start)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_pairs_are_counted_on_the_device_of_the_batch(tmp_path: Path) -> None:
    """On several GPUs the counts are joined with marks that are on the device."""
    run = trainer(tmp_path, pairs())
    units = run.count_units({"input_ids": torch.zeros(6, 3, dtype=torch.int64, device="meta")})
    assert units.device.type == "meta"
    assert int(run.count_units({"input_ids": torch.zeros(6, 3)})) == 3


def test_it_learns_and_what_it_saves_scores_alike(tmp_path: Path) -> None:
    run = trainer(tmp_path, pairs(), model=str(save_tiny(tmp_path / "sft")), max_steps=30)
    run.train()
    run.save_model()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    last = [entry for entry in run.state.log_history if "rewards/accuracies" in entry][-1]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], rel=1e-4
    )
    assert {"rewards/all_mean", "rewards/all_std"} <= set(last)

    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = expected_rewards(saved)
    scorer = RewardModelScorer(tmp_path / "out", device="cpu")
    given = [
        Candidate(f"ask {number}", answer, "x")
        for number, pair in enumerate(WORDS)
        for answer in pair
    ]
    found = torch.tensor(scorer.score(given), dtype=torch.float64).view(-1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[:, 0] > found[:, 1]).all()
    assert "Bradley-Terry" in (tmp_path / "out" / "README.md").read_text()


def test_trl_takes_the_saved_model(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    run = trainer(tmp_path, pairs())
    run.train()
    run.save_model()
    theirs = trl.RewardTrainer(
        model=str(tmp_path / "out"),
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_list(pairs()),
    )
    batch = theirs.data_collator([theirs.train_dataset[n] for n in range(4)])
    theirs.model.train()
    torch.testing.assert_close(
        theirs.compute_loss(theirs.model, batch), batch_loss(run), rtol=1e-6, atol=1e-6
    )


def test_an_adapter_keeps_the_head_and_loads_again(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save_tiny(tmp_path / "base", chat=True)
    run = RewardTrainer(
        str(base),
        args=config(tmp_path, max_steps=20, learning_rate=1e-2),
        train_dataset=pairs(),
        peft_config=peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"),
    )
    before = run.model.base_model.model.score.modules_to_save["default"].weight.clone()
    run.train()
    run.save_model()
    model = run.model
    assert (model.base_model.model.score.modules_to_save["default"].weight != before).any()
    assert not any("score.lora" in name for name, _ in model.named_parameters())
    expected = expected_rewards(run.model.merge_and_unload())
    scorer = RewardModelScorer(tmp_path / "out", device="cpu")
    given = [Candidate(f"ask {n}", answer, "x") for n, pair in enumerate(WORDS) for answer in pair]
    found = torch.tensor(scorer.score(given), dtype=torch.float64).view(-1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_the_head_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(InputError, match="task_type='SEQ_CLS'"):
        RewardTrainer(
            tiny_reward_model(),
            args=config(tmp_path),
            train_dataset=pairs(),
            processing_class=tiny_tokenizer(chat=True),
            peft_config=peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        )


def test_records_with_rewards_become_pairs_of_the_best_and_the_worst(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ask", "responses": ["mid", "best", "worst"], "rewards": [1.0, 4.0, -2.0]},
        {"prompt": "other", "responses": ["same", "same too"], "rewards": [1.0, 1.0]},
    ]
    run = trainer(tmp_path, rows, margin="rewards")
    (row,) = run.train_dataset.rows
    tokenizer = tiny_tokenizer(chat=True)
    texts = [tokenizer.decode(torch.cat([row.prompt, one])) for one in row.responses]
    assert ["best" in texts[0].replace(" ", ""), "worst" in texts[1].replace(" ", "")] == [True] * 2
    assert row.rewards == [6.0, 0.0]


def test_margins_can_be_left_out_but_not_forgotten(tmp_path: Path) -> None:
    rows = pairs(margin=[0.5, 0.0, -1.0, 2.0])
    run = trainer(tmp_path / "none", rows, margin="none")
    assert [row.rewards for row in run.train_dataset.rows] == [None] * 4
    del rows[2]["margin"]
    with pytest.raises(DataError, match="row 2: no `margin`"):
        trainer(tmp_path / "some", rows)
    with pytest.raises(DataError, match="row 0: no rewards"):
        trainer(tmp_path / "rewards", rows, margin="rewards")
    rows[0]["margin"] = "large"
    with pytest.raises(DataError, match="row 0: `margin`"):
        trainer(tmp_path / "text", rows)


def test_what_does_not_fit_is_dropped_or_cut(tmp_path: Path) -> None:
    rows = pairs()
    rows[1]["chosen"][0]["content"] = "a" * 100
    run = trainer(tmp_path / "drop", rows, max_length=60)
    assert len(run.train_dataset) == 3
    run = trainer(tmp_path / "cut", rows, max_length=60, truncate_responses=True)
    row = run.train_dataset.rows[1]
    assert len(row.prompt) + len(row.responses[0]) == 60


def test_plain_text_is_read_alike_when_scored(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"ask {number} ", "chosen": good, "rejected": bad}
        for number, (good, bad) in enumerate(WORDS)
    ]
    run = trainer(tmp_path, rows, prompt_format="plain")
    run.train()
    run.save_model()
    found = run.evaluate(rows)
    scorer = RewardModelScorer(tmp_path / "out", device="cpu")
    assert scorer.tokenizer.chat_template is None
    scores = scorer.score([Candidate(row["prompt"], row["chosen"], "x") for row in rows])
    assert sum(scores) / 4 == pytest.approx(found["eval_rewards/chosen"], rel=1e-4)


def test_held_out_pairs_are_reported(tmp_path: Path) -> None:
    run = trainer(tmp_path, pairs(), eval_dataset=pairs(), eval_strategy="steps", eval_steps=1)
    run.train()
    report = run.report()
    assert report is not None
    rewards = expected_rewards(run.model)
    gap = rewards[:, 0] - rewards[:, 1]
    assert report.pairs == 4
    assert report.accuracy == float((gap > 0).double().mean())
    assert report.loss == pytest.approx(float(-logsigmoid(gap).mean()), rel=1e-4)
    assert report.margin == pytest.approx(float(gap.mean()), rel=1e-3, abs=1e-5)
    last = [entry for entry in run.state.log_history if "eval_loss" in entry][-1]
    assert last["eval_loss"] == pytest.approx(report.loss, rel=1e-5)
    assert last["eval_rewards/accuracies"] == report.accuracy
    written = json.loads((tmp_path / "out" / "reward_model.json").read_text())
    assert written["pairs"] == 4 and written["accuracy"] == report.accuracy
    assert (tmp_path / "out" / "reward_model.png").stat().st_size > 5000


def test_without_held_out_pairs_there_is_no_report(tmp_path: Path) -> None:
    assert trainer(tmp_path, pairs()).report() is None


def test_calibration_is_measured_against_the_known_truth() -> None:
    """100 pairs at each of two margins, of which a known share is right."""
    sure, unsure = math.log(9), math.log(1.5)  # confidences of 0.9 and 0.6
    rows = [[sure, 0.0]] * 70 + [[0.0, sure]] * 30 + [[0.0, unsure]] * 40 + [[unsure, 0.0]] * 60
    report = measure(torch.tensor(rows))
    assert report.accuracy == 0.65
    # 0.9 is said of what is right 7 times in 10; the others are right as often as is said.
    assert report.ece == pytest.approx(0.5 * 0.2, abs=1e-6)
    assert [one.pairs for one in report.bins] == [100, 100]
    assert [one.accuracy for one in report.bins] == [0.6, 0.7]
    assert all(one.low <= one.confidence <= one.high for one in report.bins)


def test_equal_rewards_are_no_success() -> None:
    report = measure(torch.zeros(3, 2))
    assert (report.accuracy, report.loss) == (0.0, pytest.approx(math.log(2)))


def test_it_resumes_to_the_same_weights(tmp_path: Path) -> None:
    rows = tiny_rows(6)
    settings = {"save_steps": 2, "lr_scheduler_type": "constant"}
    straight = trainer(tmp_path / "a", rows, max_steps=4, **settings)
    straight.train()
    trainer(tmp_path / "b", rows, max_steps=2, **settings).train()
    resumed = trainer(tmp_path / "b", rows, max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    other = trainer(tmp_path / "b", rows, max_steps=6, center_rewards_coefficient=0.1, **settings)
    with pytest.raises(InputError, match="center_rewards_coefficient"):
        other.train(resume_from_checkpoint=True)


def test_the_head_learns_in_fp32_under_bf16(tmp_path: Path) -> None:
    run = trainer(tmp_path, pairs(), bf16=True)
    rows = [run.train_dataset[number] for number in range(4)]
    with run.compute_loss_context_manager():
        _, outputs = run.compute_loss(run.model, run.data_collator(rows), return_outputs=True)
    assert outputs.logits.dtype == torch.float32
    run.train()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"center_rewards_coefficient": -1.0}, "`center_rewards_coefficient`"),
        ({"margin": "some"}, "`margin`"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`"),
        ({"max_length": 1}, "fits max_length=1"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, wrong: dict[str, Any], match: str) -> None:
    with pytest.raises((InputError, DataError), match=match):
        trainer(tmp_path, pairs(), **wrong)


def test_models_that_are_none(tmp_path: Path) -> None:
    many = tiny_reward_model()
    many.config.num_labels = 3
    with pytest.raises(InputError, match="3 outputs"):
        trainer(tmp_path, pairs(), model=LlamaForSequenceClassification(many.config))
    with pytest.raises(InputError, match="`model`"):
        trainer(tmp_path, pairs(), model=str(tmp_path / "nowhere"))


def test_a_trained_reward_model_is_trained_on(tmp_path: Path) -> None:
    folder = save_tiny_reward_model(tmp_path / "rm")
    run = trainer(tmp_path, pairs(), model=str(folder))
    assert torch.equal(run.model.score.weight, tiny_reward_model().score.weight)


def test_records_are_taken_as_they_are_parsed(tmp_path: Path) -> None:
    record = Record("ask", ["yes", "no"], None, "x:1", preferred=[True, False], margin=0.5)
    (row,) = trainer(tmp_path, [record]).train_dataset.rows
    assert (row.where, row.rewards) == ("x:1", [0.5, 0.0])
    written = write_jsonl(tmp_path / "pairs.jsonl", pairs())
    assert len(trainer(tmp_path, str(written)).train_dataset) == 4
