"""Records keep all they had and get their rewards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.data import load_records
from rao_kernels.errors import DataError, InputError
from rao_kernels.rewards import RewardEnsemble, RuleScorer, annotate
from rao_kernels.train import RAOConfig, RAOTrainer
from tests.train.tiny import save_tiny, write_jsonl

from .rows import Rows, length, read, unscored

PAIR = {"prompt": "say what", "chosen": "a long one", "rejected": "short", "id": 7}


def test_every_column_is_kept_and_rewards_are_added(score: Callable[..., Rows]) -> None:
    rows = unscored(5)
    scored = score(rows, batch_size=2)
    described = RuleScorer(length).describe()
    assert scored == [
        row | {"rewards": [n + 1.0, 2 * n + 1.0], "scorer": described} for n, row in enumerate(rows)
    ]


def test_pairs_get_the_scores_that_are_read_back(
    score: Callable[..., Rows], tmp_path: Path
) -> None:
    (scored,) = score([PAIR])
    assert scored == PAIR | {
        "score_chosen": 10.0,
        "score_rejected": 5.0,
        "scorer": RuleScorer(length).describe(),
    }
    (record,) = load_records(tmp_path / "out.jsonl")
    assert record.rewards == [10.0, 5.0]
    assert record.preferred == [True, False]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "what", "completion": "a cat", "label": True},
        {"instruction": "what", "output": "a cat"},
        {
            "messages": [
                {"role": "user", "content": "what"},
                {"role": "assistant", "content": "a cat"},
            ],
            "system": "be brief",
        },
    ],
)
def test_records_of_other_shapes_get_columns_that_are_read(
    score: Callable[..., Rows], tmp_path: Path, row: dict[str, Any]
) -> None:
    (before,) = load_records([row])
    (scored,) = score([row])
    assert scored.items() >= row.items()
    assert scored["rewards"] == [5.0]
    (after,) = load_records(tmp_path / "out.jsonl")
    assert (after.prompt, after.responses) == (before.prompt, before.responses)
    assert after.rewards == [5.0]


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (
            {"all_generated_responses": ["a cat", "no", "yes"], "all_rm_scores": [0.2, 0.1, 0.4]},
            {"overwrite": True},
        ),
        ({"answers": [{"answer": "a cat", "rank": 1.0}, {"answer": "no", "rank": 2.0}]}, {}),
    ],
)
def test_lists_of_responses_that_hold_a_pair_too_are_read_again(
    score: Callable[..., Rows], tmp_path: Path, texts: dict[str, Any], options: dict[str, bool]
) -> None:
    row = {"prompt": "what", **texts, "chosen": "yes it is", "rejected": "no", "id": 7}
    (scored,) = score([row | {"score_chosen": 3.0, "score_rejected": 1.0}], **options)
    assert scored.items() >= {"prompt": "what", **texts, "id": 7}.items()
    (before,) = load_records([row])
    (after,) = load_records(tmp_path / "out.jsonl")
    assert (after.prompt, after.responses) == (before.prompt, before.responses)
    assert after.rewards == length([], before.responses)
    assert not {"chosen", "rejected", "score_chosen", "score_rejected"} & set(scored)


def test_several_models_give_their_mean_and_each_reward(score: Callable[..., Rows]) -> None:
    def doubled(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [2 * one for one in length(prompts, completions)]

    ensemble = RewardEnsemble([RuleScorer(length), RuleScorer(doubled)])
    row, pair = score([unscored(2)[1], PAIR], ensemble)
    assert row["reward_ensemble"] == [[2.0, 3.0], [4.0, 6.0]]
    assert row["rewards"] == [3.0, 4.5]
    assert pair["reward_ensemble"] == [[10.0, 5.0], [20.0, 10.0]]
    assert (pair["score_chosen"], pair["score_rejected"]) == (15.0, 7.5)


def test_gold_answers_are_scored_where_they_are(score: Callable[..., Rows]) -> None:
    rows = unscored(2)
    rows[1]["gold"] = "the best answer"
    plain, gold = score(rows, gold=True)
    assert "gold_reward" not in plain
    assert gold["gold_reward"] == 15.0
    assert gold["rewards"] == [2.0, 3.0]


def test_samples_of_the_reference_give_ref_rewards(score: Callable[..., Rows]) -> None:
    rows: Rows = [*unscored(2), unscored(3)[2] | {"rewards": [0.5, 0.25]}]
    samples: Rows = [
        {"prompt": "ask 1", "responses": ["aaaa"]},
        {"prompt": "ask 0", "responses": ["b", "bb"]},
        {"prompt": [{"role": "user", "content": "ask 1"}], "responses": ["a"]},
        {"prompt": "ask 2", "responses": ["ccc", "cc", "c"]},
    ]
    scored = score(rows, samples=samples)
    assert [row["ref_rewards"] for row in scored] == [[1.0, 2.0], [4.0, 1.0], [3.0, 2.0, 1.0]]
    assert [row["rewards"] for row in scored] == [[1.0, 1.0], [2.0, 3.0], [0.5, 0.25]]


def test_a_prompt_without_samples_is_named(score: Callable[..., Rows], tmp_path: Path) -> None:
    samples: Rows = [{"prompt": "ask 0", "responses": ["b", "bb"]}]
    with pytest.raises(DataError, match=r"data\.jsonl:2: no sample"):
        score(unscored(2), samples=samples)
    assert len(read(tmp_path / "out.jsonl")) == 1


def test_ref_rewards_of_another_scorer_are_refused(score: Callable[..., Rows]) -> None:
    rows = [unscored(1)[0] | {"rewards": [1, 2], "scorer": {"kind": "rule", "function": "other"}}]
    samples: Rows = [{"prompt": "ask 0", "responses": ["b"]}]
    with pytest.raises(InputError, match=r"`rewards`.*same scorer.*other.*--overwrite"):
        score(rows, samples=samples)
    (scored,) = score(rows, samples=samples, overwrite=True)
    assert (scored["rewards"], scored["ref_rewards"]) == ([1.0, 1.0], [1.0])


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (unscored(1)[0] | {"rewards": [1, 2]}, {}),
        (PAIR | {"score_chosen": 1.0, "score_rejected": 0.0}, {}),
        (unscored(1)[0] | {"gold": "g", "gold_reward": 3.0}, {"gold": True}),
    ],
)
def test_rewards_are_replaced_only_if_asked(
    score: Callable[..., Rows], tmp_path: Path, row: dict[str, Any], options: dict[str, bool]
) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl:1 with them.*--overwrite"):
        score([row], **options)
    (tmp_path / "out.jsonl").unlink()
    (scored,) = score([row], overwrite=True, **options)
    changed = {name for name in row if scored[name] != row[name]}
    assert changed <= {"rewards", "score_chosen", "score_rejected", "gold_reward"} and changed


OTHER = {"kind": "rule", "function": "other"}
SAMPLES = [{"prompt": "ask 0", "responses": ["bbbb"]}]


def test_new_rewards_leave_no_old_ensemble(score: Callable[..., Rows], tmp_path: Path) -> None:
    row = unscored(1)[0] | {"rewards": [1, 2], "reward_ensemble": [[1, 1], [1, 3]], "scorer": OTHER}
    (scored,) = score([row], overwrite=True)
    assert (scored["rewards"], scored["scorer"]) == ([1.0, 1.0], RuleScorer(length).describe())
    assert "reward_ensemble" not in scored
    (tmp_path / "out.jsonl").unlink()
    (scored,) = score([row], RewardEnsemble([RuleScorer(length)] * 2), overwrite=True)
    assert scored["reward_ensemble"] == [[1.0, 1.0]] * 2
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(InputError, match=r"without `reward_ensemble`.*--overwrite"):
        score([{name: value for name, value in row.items() if name != "rewards"}])


@pytest.mark.parametrize(
    ("column", "flag", "again"),
    [
        ({"ref_rewards": [0.5]}, "--ref_samples", {"samples": SAMPLES}),
        ({"gold": "best", "gold_reward": 0.0}, "--gold", {"gold": True}),
    ],
)
def test_other_rewards_of_another_scorer_do_not_stay(
    score: Callable[..., Rows],
    tmp_path: Path,
    column: dict[str, Any],
    flag: str,
    again: dict[str, Any],
) -> None:
    """`scorer` names one scorer for all rewards of a record."""
    row = unscored(1)[0] | {"rewards": [1, 2], "scorer": OTHER} | column
    name = list(column)[-1]
    unrewarded = {key: value for key, value in row.items() if key != "rewards"}
    for given, options in ((row, {"overwrite": True}), (unrewarded, {})):
        with pytest.raises(
            InputError, match=rf"data\.jsonl:1, scored by .*other.*{flag}"
        ) as caught:
            score([given], **options)
        assert f"`{name}`" in str(caught.value)
        (tmp_path / "out.jsonl").unlink()
    (scored,) = score([row], overwrite=True, **again)
    assert scored[name] == (4.0 if name == "gold_reward" else [4.0])
    assert scored["scorer"] == RuleScorer(length).describe()
    (tmp_path / "out.jsonl").unlink()
    (scored,) = score([row | {"scorer": scored["scorer"]}], overwrite=True)
    assert scored[name] == column[name]


def test_rules_see_the_other_columns_and_what_was_cut(score: Callable[..., Rows]) -> None:
    seen: list[Any] = []

    def watch(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.append(columns)
        return [0.0] * len(completions)

    row = unscored(1)[0] | {"answer": "4", "finished": [True, False]}
    score([row], RuleScorer(watch))
    assert seen == [
        {"source": [row["source"]] * 2, "answer": ["4", "4"], "finished": [True, False]}
    ]


def test_scored_records_train_as_they_are(score: Callable[..., Rows], tmp_path: Path) -> None:
    scored = score(unscored(4))
    config = RAOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    model = save_tiny(tmp_path / "model")
    trainer = RAOTrainer(str(model), args=config, train_dataset=str(tmp_path / "out.jsonl"))
    found = [row.rewards for row in trainer.train_dataset.rows]
    assert found == [row["rewards"] for row in scored]
    trainer.train()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"batch_size": 0}, "`batch_size`"), ({"limit": 0}, "`limit`")],
)
def test_options_out_of_range(
    score: Callable[..., Rows], wrong: dict[str, int], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        score(unscored(1), **wrong)


def test_the_output_is_not_the_data(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", unscored(1))
    with pytest.raises(InputError, match="another file than the data"):
        annotate(data, data, RuleScorer(length))
    assert read(data) == unscored(1)
