"""Options of a run are checked where they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser

from rao_kernels.errors import InputError
from rao_kernels.train import RAOConfig, device


def hyper(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return RAOConfig(output_dir=str(tmp_path), use_cpu=True, **options).hyperparameters()


def test_named_fields_and_loss_kwargs_meet(tmp_path: Path) -> None:
    assert hyper(tmp_path) == {"beta": 0.1, "log_z0": "auto", "prompt_term": "detached"}
    assert hyper(tmp_path, log_z0=-3.5, beta=0.5)["log_z0"] == -3.5
    assert hyper(tmp_path, log_z0=50)["log_z0"] == 50.0
    assert hyper(tmp_path, loss="sigmoid", beta=0.2)["beta"] == 0.2
    assert hyper(tmp_path, loss="ipo", loss_kwargs='{"tau": 0.3}')["tau"] == 0.3
    assert hyper(tmp_path, loss="simpo", loss_kwargs={"gamma": 1.0})["gamma"] == 1.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss": "sigmod"}, "Did you mean 'sigmoid'"),
        ({"loss": "sft", "beta": 0.1}, "hyperparameter of `sft`"),
        ({"loss": "sigmoid", "log_z0": "3"}, "hyperparameter of `sigmoid`"),
        ({"log_z0": "many"}, "finite number of nats"),
        ({"log_z0": "nan"}, "finite number of nats"),
        ({"loss_kwargs": "{"}, "a JSON object"),
        ({"loss_kwargs": "[1]"}, "a JSON object"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"prefix_length": 0}, "'auto' or at least 1"),
        ({"prefix_length": "many"}, "'auto' or at least 1"),
        ({"grad_tolerance": "much"}, "'auto' or a probability"),
        ({"grad_tolerance": 1.0}, "'auto' or a probability"),
        ({"learning_rate": -1.0}, "`learning_rate`: expected a finite number"),
        ({"learning_rate": float("nan")}, "`learning_rate`: expected a finite number"),
        ({"fp16": True}, "`fp16`: expected False on a CPU.*bf16"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        hyper(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("beta", "0.1", 0.1),
        ("log_z0", "50", 50.0),
        ("log_z0", "-3.5e1", -35.0),
        ("log_z0", "auto", "auto"),
        ("log_z0", "logmeanexp", "logmeanexp"),
        ("prefix_length", "7", 7),
        ("prefix_length", "auto", "auto"),
        ("grad_tolerance", "1e-3", 1e-3),
        ("grad_tolerance", "auto", "auto"),
    ],
)
def test_numbers_are_numbers_wherever_they_come_from(
    tmp_path: Path, name: str, text: str, value: float | str
) -> None:
    """From a command line, from the parser's dict of a YAML file, and from Python."""
    shared = {"output_dir": str(tmp_path), "use_cpu": True}
    flags = ["--output_dir", str(tmp_path), "--use_cpu", f"--{name}={text}"]
    parser = HfArgumentParser(RAOConfig)
    for config in (
        *parser.parse_args_into_dataclasses(flags),
        *parser.parse_dict({**shared, name: value}),
        RAOConfig(**{**shared, name: value}),
    ):
        found = getattr(config, name)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", [True, None, "", "0x1", float("inf")])
@pytest.mark.parametrize("name", ["log_z0", "prefix_length", "grad_tolerance"])
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"`{name}`: expected 'auto'"):
        RAOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_tolerance_of_each_precision(tmp_path: Path) -> None:
    auto = RAOConfig(output_dir=str(tmp_path), use_cpu=True)
    expected = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-13, torch.float32: 0.0}
    assert {dtype: auto.tolerance(dtype) for dtype in expected} == expected
    given = RAOConfig(output_dir=str(tmp_path), use_cpu=True, grad_tolerance=2.0**-7)
    assert given.tolerance(torch.float32) == 2.0**-7


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_a_gpu_the_cpu_is_used_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device._say_so.cache_clear()
    for _ in range(2):
        config = RAOConfig(output_dir=str(tmp_path), bf16=True)
        assert config.use_cpu
        assert config.device.type == "cpu"
    said = [record.getMessage() for record in caplog.records if "on the CPU" in record.getMessage()]
    assert len(said) == 1
    with pytest.raises(InputError, match="fp16"):
        RAOConfig(output_dir=str(tmp_path), fp16=True)


def test_with_a_gpu_the_cpu_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not RAOConfig(output_dir=str(tmp_path)).use_cpu
