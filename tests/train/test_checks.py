"""Settings that cannot work are refused by name before the reference is scored."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    TrainingArguments,
)

from rao_kernels.errors import InputError, NotYetError
from rao_kernels.losses import LOSSES
from rao_kernels.train import RAOConfig, RAOTrainer
from rao_kernels.train.checks import check_arguments, check_hyperparameters, check_rows
from tests.train.test_trainer import config, trainer
from tests.train.tiny import save_tiny, tiny_model, tiny_rows, tiny_tokenizer

# Hyperparameters


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"loss": "ipo", "loss_kwargs": {"tau": 0}}, "tau"),
        ({"loss": "sigmoid", "loss_kwargs": {"label_smoothing": 1.5}}, "label_smoothing"),
        ({"loss": '{"sigmoid": 1, "sft": 1}', "beta": -1.0}, "beta"),
        ({"loss": "sigmoid", "loss_kwargs": {"label_smoothing": "much"}}, "loss_kwargs"),
        ({"prompt_term": "sideways"}, "prompt_term"),
    ],
)
def test_hyperparameters_are_checked_before_the_reference_is_scored(
    tmp_path: Path, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(InputError) as caught:
        trainer(tmp_path, **options)
    assert caught.value.argument == name
    assert not (tmp_path / "ref_cache").exists()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("num_train_epochs", 0),
        ("max_grad_norm", -1.0),
        ("weight_decay", -1.0),
        ("adam_beta1", 2.0),
    ],
)
def test_numbers_out_of_range_are_refused_before_scoring(
    tmp_path: Path, name: str, wrong: float
) -> None:
    with pytest.raises(InputError, match=f"`{name}`: expected a number"):
        trainer(tmp_path, **{name: wrong})
    assert not list(tmp_path.iterdir())


def test_several_losses_as_a_mapping(tmp_path: Path) -> None:
    args = config(tmp_path, loss={"rao": 1, "sft": 0.1})
    assert args.spec.name == "1 rao + 0.1 sft"


def test_every_loss_passes_at_its_defaults(tmp_path: Path) -> None:
    for loss in LOSSES:
        check_arguments(config(tmp_path, loss=loss), rollouts=loss == "ppo")


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    args = config(tmp_path, loss="simpo", beta=1e308)
    with pytest.raises(InputError, match="beta=1e"):
        check_hyperparameters(args)


# Arguments of transformers


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("train_sampling_strategy", "group_by_length"),
        ("train_sampling_strategy", "batch_rebalance"),
        ("average_tokens_across_devices", False),
        ("label_names", ["labels"]),
        ("include_for_metrics", ["inputs"]),
        ("batch_eval_metrics", True),
        ("bf16_full_eval", True),
        ("accelerator_config", {"split_batches": True}),
        ("accelerator_config", {"dispatch_batches": True}),
        ("accelerator_config", {"even_batches": False}),
    ],
)
def test_an_argument_that_would_be_ignored_is_refused(
    tmp_path: Path, option: str, value: Any
) -> None:
    with pytest.raises(InputError) as caught:
        trainer(tmp_path, **{option: value})
    assert caught.value.argument.startswith(option)
    assert not (tmp_path / "ref_cache").exists()


def test_arguments_that_change_no_number_work(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"include_num_input_tokens_seen": "non_padding"},
        {"auto_find_batch_size": True},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
        {"debug": "underflow_overflow"},
        {"dataloader_num_workers": 1},
        {"activation_checkpointing": True},
        {"eval_accumulation_steps": 1, "prediction_loss_only": True},
    ]
    found = []
    for options in settings:
        folder = tmp_path / str(len(found))
        run = trainer(folder, eval_dataset=tiny_rows(3), eval_strategy="epoch", **options)
        run.train()
        history = run.state.log_history
        found.append([entry[k] for entry in history for k in ("loss", "eval_loss") if k in entry])
    assert len(found[0]) == 5
    for options, losses in zip(settings, found, strict=True):
        assert losses == pytest.approx(found[0], rel=1e-5), options


def test_noise_on_the_embeddings_is_not_in_the_evaluation(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_dataset=tiny_rows(3), neftune_noise_alpha=5.0)
    before = run.evaluate()["eval_loss"]
    quiet = trainer(tmp_path / "quiet", eval_dataset=tiny_rows(3)).evaluate()["eval_loss"]
    assert before == pytest.approx(quiet, rel=1e-6)
    run.train()
    assert abs(run.state.log_history[1]["rao/implicit_mean"]) > 1e-4


def test_predict_says_what_there_is_instead(tmp_path: Path) -> None:
    with pytest.raises(NotYetError, match="evaluate"):
        trainer(tmp_path).predict(tiny_rows(2))


def test_a_folder_that_is_no_checkpoint_is_refused_when_the_trainer_is_made(
    tmp_path: Path,
) -> None:
    for folder in ("none", "half"):
        (tmp_path / "half").mkdir(exist_ok=True)
        with pytest.raises(InputError) as caught:
            trainer(tmp_path, resume_from_checkpoint=str(tmp_path / folder))
        assert caught.value.argument == "resume_from_checkpoint"
    assert not (tmp_path / "ref_cache").exists()
    trainer(tmp_path, resume_from_checkpoint="true")


def test_fsdp_on_a_cpu_is_refused(tmp_path: Path) -> None:
    args = config(tmp_path)
    args.fsdp = True
    with pytest.raises(InputError, match="`fsdp`"):
        check_arguments(args)


@pytest.mark.parametrize(("stage", "gather", "warned"), [(3, None, 1), (3, True, 0), (2, None, 0)])
def test_zero3_that_saves_no_weights_warns(
    tmp_path: Path, stage: int, gather: bool | None, warned: int
) -> None:
    """DeepSpeed gathers the weights for save_model where its configuration says so, and only
    there."""
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gather}
    args = config(tmp_path)
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_arguments(args)
    assert sum("zero_to_fp32.py" in str(one.message) for one in found) == warned


# Objects


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": 3}, "model"),
        ({"ref_model": RAOConfig}, "ref_model"),
        ({"ref_model": "/no/such/folder"}, "ref_model"),
        ({"processing_class": "gpt2"}, "processing_class"),
        ({"args": TrainingArguments}, "args"),
    ],
)
def test_objects_of_a_wrong_kind(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    given: dict[str, Any] = {
        "model": tiny_model(),
        "args": config(tmp_path),
        "processing_class": tiny_tokenizer(),
        "train_dataset": tiny_rows(3),
    }
    made = {k: v(str(tmp_path), use_cpu=True) if callable(v) else v for k, v in changes.items()}
    with pytest.raises(InputError) as caught:
        RAOTrainer(**given | made)
    assert caught.value.argument == name


@pytest.mark.parametrize("kind", [str, Path])
def test_model_and_reference_may_be_folders(tmp_path: Path, kind: type) -> None:
    policy, other = save_tiny(tmp_path / "policy", 0), save_tiny(tmp_path / "reference", 1)
    run = RAOTrainer(
        kind(policy), kind(other), config(tmp_path / "out"), train_dataset=tiny_rows(3)
    )
    expected = trainer(tmp_path / "other", tiny_rows(3), tiny_model(1))
    pairs = zip(run.train_dataset.references, expected.train_dataset.references, strict=True)
    for own, reference in pairs:
        torch.testing.assert_close(own.responses, reference.responses)
    assert run._scorer is not None
    assert not any(p.requires_grad for p in run._scorer.model.parameters())


@pytest.mark.parametrize("targets", [["nope"], ["q_proj", "nope"], "nope", ["norm"]])
def test_an_adapter_on_modules_that_are_not_there(tmp_path: Path, targets: Any) -> None:
    with pytest.raises(InputError, match=r"q_proj, .*--lora_target_modules") as caught:
        trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules=targets))
    assert caught.value.argument == "peft_config"
    assert ("norm" if targets == ["norm"] else "nope") in str(caught.value).lower()


def test_an_adapter_that_lengthens_the_input_is_refused_before_scoring(tmp_path: Path) -> None:
    adapter = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(InputError, match="PromptTuningConfig"):
        trainer(tmp_path, peft_config=adapter)
    assert not (tmp_path / "ref_cache").exists()


# Rows beside the model

SMALL: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2(positions: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(n_positions=positions, n_embd=8, n_layer=1, n_head=1, **SMALL)
    )


def gptj(positions: int) -> PreTrainedModel:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "rotary_dim": 4}
    return GPTJForCausalLM(GPTJConfig(n_positions=positions, **sizes, **SMALL))


def opt(positions: int) -> PreTrainedModel:
    sizes = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return OPTForCausalLM(
        OPTConfig(max_position_embeddings=positions, word_embed_proj_dim=8, **sizes, **SMALL)
    )


def bert(positions: int) -> PreTrainedModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    more = {"intermediate_size": 8, "is_decoder": True}
    return BertLMHeadModel(BertConfig(max_position_embeddings=positions, **sizes, **more, **SMALL))


@pytest.mark.parametrize("build", [gpt2, gptj, opt, bert])
def test_rows_longer_than_a_table_of_positions_are_refused(tmp_path: Path, build: Any) -> None:
    """Beyond its table the model itself fails, with an IndexError."""
    rows = trainer(tmp_path).train_dataset.rows
    longest = max(len(row.prompt) + max(map(len, row.responses)) for row in rows)
    ids = torch.ones(1, longest, dtype=torch.int64)
    with pytest.raises((IndexError, RuntimeError)):
        build(longest - 1)(input_ids=ids)
    build(longest)(input_ids=ids)
    with pytest.raises(InputError, match=f"max_length={longest - 1}") as caught:
        check_rows(rows, build(longest - 1), tiny_tokenizer(), 1024)
    assert caught.value.argument == "max_length"
    check_rows(rows, build(longest), tiny_tokenizer(), 1024)


def test_rows_longer_than_a_table_are_refused_before_they_are_scored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`max_length`"):
        trainer(tmp_path, model=gpt2(14))
    assert not (tmp_path / "ref_cache").exists()
    trainer(tmp_path, model=gpt2(14), max_length=14, truncate_responses=True)


def test_rows_longer_than_a_rotary_model_was_trained_on_warn(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.max_position_embeddings = 12
    with pytest.warns(UserWarning, match="max_length=12 leaves longer ones out"):
        trainer(tmp_path, model=model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*max_position_embeddings")
        trainer(tmp_path / "long")


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    for model, reference in ((20, 64), (64, 20)):
        made = [tiny_model(0), tiny_model(1)]
        for one, size in zip(made, (model, reference), strict=True):
            one.resize_token_embeddings(size, mean_resizing=False)
        with pytest.raises(InputError, match="20 embeddings.*36 tokens") as caught:
            RAOTrainer(
                *made,
                config(tmp_path),
                train_dataset=tiny_rows(3),
                processing_class=tiny_tokenizer(),
            )
        assert caught.value.argument == "processing_class"
    assert not (tmp_path / "ref_cache").exists()


def test_padding_without_an_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer) - 1, mean_resizing=False)
    with pytest.raises(InputError, match="for padding"):
        RAOTrainer(
            model, args=config(tmp_path), train_dataset=tiny_rows(3), processing_class=tokenizer
        )
