"""What each loss makes of records, and what it says of those that lack what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.data import PreferenceDataset, Record, SampledTokens, TokenizedRow
from rao_kernels.errors import DataError, InputError
from rao_kernels.train import RAOConfig
from rao_kernels.train.prepare import prepare_training
from tests.train.tiny import tiny_tokenizer


def record(number: int = 0, **changes: Any) -> Record:
    plain = Record(f"ask {number}", ["yes", "no", "so"], None, f"f.jsonl:{number}")
    return replace(plain, **changes)


def scored(number: int = 0, **changes: Any) -> Record:
    return record(number, **{"rewards": [0.25, 0.75, 0.5], **changes})


def sampled(number: int = 0) -> Record:
    tokens = SampledTokens([1, 5], [[6], [7], [8]], [[-1.0], [-2.0], [-3.0]])
    return scored(number, sampled=tokens)


def read(
    folder: Path, loss: str, records: Sequence[Record], **changes: Any
) -> Sequence[TokenizedRow]:
    settings = RAOConfig(
        output_dir=str(folder), loss=loss, use_cpu=True, disable_tqdm=True, **changes
    )
    dataset = prepare_training(list(records), settings, tiny_tokenizer())
    assert isinstance(dataset, PreferenceDataset)
    return dataset.rows


@pytest.mark.parametrize("loss", ["sft", "dft", '{"sft": 1.0}'])
def test_losses_of_responses_alone_take_unscored_records(tmp_path: Path, loss: str) -> None:
    rows = read(tmp_path, loss, [record(), record(1, prompt="", responses=["once"])])
    assert [len(row.responses) for row in rows] == [3, 1]
    assert {row.preferred is None for row in rows} == {True}


@pytest.mark.parametrize("loss", ["rao", "grpo", "sppo", "aot_unpaired", "kto", "simpo", "bco"])
def test_unscored_records_are_named_with_the_command_that_scores(tmp_path: Path, loss: str) -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:7: no (rewards|labels).*rao-kernels annotate"):
        read(tmp_path, loss, [record(7)])


@pytest.mark.parametrize(
    ("loss", "given", "named"),
    [
        ("qrpo", scored(3), "`ref_rewards`.*rao-kernels generate.*rao-kernels annotate"),
        ("a_star_po", scored(3), "`ref_rewards`.*rao-kernels generate.*rao-kernels annotate"),
        ("rpo_pessimistic", scored(3), "`reward_ensemble`.*rao-kernels annotate"),
        ("grpo", scored(3), "`old_logps`.*rao-kernels generate"),
        ("rloo", scored(3), "`old_logps`.*rao-kernels generate"),
        ("tpo", scored(3), "no gold answer.*column `gold`"),
        ("grao", scored(3), "no gold answer.*column `gold`"),
        ("grao", scored(3, gold="gold"), "no reward of its gold.*`gold_reward`.*annotate"),
    ],
)
def test_missing_columns_are_named_with_what_fills_them(
    tmp_path: Path, loss: str, given: Record, named: str
) -> None:
    with pytest.raises(DataError, match=rf"f\.jsonl:3: .*{named}"):
        read(tmp_path, loss, [given])


def test_columns_that_are_there_reach_the_rows(tmp_path: Path) -> None:
    ensemble = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    (row,) = read(tmp_path, "qrpo", [scored(ref_rewards=[0.1, 0.2])])
    assert row.ref_rewards == [0.1, 0.2]
    (row,) = read(tmp_path, "rpo_pessimistic", [scored(reward_ensemble=ensemble)])
    assert row.reward_ensemble == [[1.0, 0.0], [4.0, 3.0]], "of the best and the worst response"
    (row,) = read(tmp_path, "grpo", [sampled()])
    assert [v.tolist() for v in row.token_inputs["old_token_logps"]] == [[-1.0], [-2.0], [-3.0]]


def test_gold_answers_are_added_for_losses_that_read_them(tmp_path: Path) -> None:
    given = scored(gold="gold", gold_reward=1.0)
    (grao,) = read(tmp_path, "grao", [given])
    assert grao.rewards == [0.25, 0.75, 0.5, 1.0]
    assert grao.gold_marks == [False, False, False, True]
    (tpo,) = read(tmp_path, "tpo", [given])
    assert (tpo.preferred, tpo.gold_marks) == ([True, False, True], [False, False, True])
    (rao,) = read(tmp_path, "rao", [given])
    assert (len(rao.responses), rao.gold_marks) == (3, None)


def test_kto_pairs_prompts_in_blocks_of_a_batch(tmp_path: Path) -> None:
    words = ["a", "b", "c", "d", "e"]
    given = [record(i, responses=[word], preferred=[i % 2 == 0]) for i, word in enumerate(words)]
    rows = read(tmp_path, "kto", given, per_device_train_batch_size=2)
    tokenizer = tiny_tokenizer()
    found = [tokenizer.decode(row.kl_responses[0][:1]) for row in rows if row.kl_responses]
    assert found == ["b", "a", "e", "c", "d"], "the last block takes the single record"
    assert [row.preferred for row in rows] == [one.preferred for one in given]
    with pytest.raises(InputError, match="per_device_train_batch_size.*at least 2.*'kto'.*got 1"):
        read(tmp_path, "kto", given, per_device_train_batch_size=1)


def test_labelled_single_responses_train_unpaired_losses_alone(tmp_path: Path) -> None:
    given = [record(i, responses=["yes"], preferred=[i == 0]) for i in range(2)]
    assert [row.preferred for row in read(tmp_path, "bco", given)] == [[True], [False]]
    with pytest.raises(DataError, match="no record is left for the loss 'sigmoid'.*'kto' or 'bco'"):
        read(tmp_path, "sigmoid", given)


def test_statistics_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path, "rao", [scored(), scored(1)])
    printed = capsys.readouterr().out
    assert "rewards: mean 0.5, sd 0.204124; min, quartiles, max 0.25, 0.25, 0.5, 0.75" in printed
    assert "prompt tokens: mean 5" in printed


def test_prepared_dataset_is_taken_as_it_is(tmp_path: Path) -> None:
    """For each kind of transform: a second trainer changes nothing of it."""
    given = [scored(i, gold="gold", gold_reward=1.0) for i in range(3)]
    for loss in ("rao", "grao", "tpo", "kto", "sigmoid"):
        settings = RAOConfig(output_dir=str(tmp_path), loss=loss, use_cpu=True, disable_tqdm=True)
        dataset = prepare_training(given, settings, tiny_tokenizer())
        assert prepare_training(dataset, settings, tiny_tokenizer()) is dataset


@pytest.mark.parametrize("streaming", [False, True])
def test_old_logps_of_another_temperature_make_no_ratio(tmp_path: Path, streaming: bool) -> None:
    """Losses without a ratio read the record; its temperature stays with it, on disk too."""
    one = sampled(4)
    assert one.sampled is not None
    warm = replace(one, sampled=replace(one.sampled, logp_temperature=0.7))
    said = r"f\.jsonl:4: its `old_logps` are of temperature 0\.7.*--temperature 1.*online"
    with pytest.raises(DataError, match=said):
        read(tmp_path, "grpo", [sampled(3), warm], streaming=streaming)
    rows = read(tmp_path, "rao", [sampled(3), warm], streaming=streaming)
    assert [row.logp_temperature for row in rows] == [1.0, 0.7]
    with pytest.raises(DataError, match=said):
        prepare_training(
            PreferenceDataset(rows),
            RAOConfig(output_dir=str(tmp_path), loss="grpo", use_cpu=True),
            tiny_tokenizer(),
        )
