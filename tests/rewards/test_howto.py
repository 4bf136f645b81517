"""Every command of docs/howto/rewards.md runs as it is written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rao_kernels.cli.main import main
from tests.train.tiny import save_tiny, write_jsonl

from .models import endpoint, save_tiny_reward_model

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "rewards.md").read_text()
COMMANDS = re.findall(r"^```sh\nrao-kernels (.*)\n```$", PAGE, re.MULTILINE)
URL = "http://localhost:8000/v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("howto")
    for number, name in enumerate(("sft", "dpo")):
        save_tiny(folder / name, number, chat=True)
    for number, name in enumerate(("rm", "rm2")):
        save_tiny_reward_model(folder / name, number)
    rows: list[dict[str, Any]] = [
        {"prompt": f"ask {number}", "responses": ["it is 4", "no"], "answer": "4"}
        for number in range(3)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "samples.jsonl", rows)
    pairs: list[dict[str, Any]] = [
        {"prompt": f"ask {number}", "chosen": f"yes {'a' * number}", "rejected": "no"}
        for number in range(20)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    (rules,) = re.findall(r"^```python\n# rules\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "rules.py").write_text(rules)
    (folder / "ask.txt").write_text("How good is {response}?")
    return folder


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with endpoint(lambda _: (200, "Score: 7")) as (found, _):
        yield found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: text.split("--output")[1][:16])
def test_the_command_runs(
    folder: Path, url: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    if "judge-model" in command:
        # A model of random weights names no score.
        from rao_kernels.rewards import LocalJudge

        save_tiny(folder / "judge-model", chat=True)
        monkeypatch.setattr(LocalJudge, "answer", lambda _, chats: ["Score: 3"] * len(chats))
    given = shlex.split(command.replace(URL, url))
    is_training = given[0] == "reward-model"
    more = ["--use_cpu", "--max_steps", "1"] if is_training else ["--reward_device", "cpu"]
    assert main([*given, *more, "--disable_tqdm", "true"]) == 0
    if not is_training:
        output = Path(given[given.index("--output") + 1])
        for line in map(json.loads, output.open()):
            assert "scorer" in line
            assert "rewards" in line or "score_chosen" in line
            assert ("ref_rewards" in line) == ("--ref_samples" in command)


def test_the_page_shows_every_source() -> None:
    for option in ("reward_model", "rule", "judge", "judge_model", "implicit", "ref_samples"):
        assert any(f"--{option} " in command for command in COMMANDS), option
    assert COMMANDS[1].count(" rm") == 2
