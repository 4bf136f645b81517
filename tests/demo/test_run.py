"""The whole demo on a tiny model, with answers that are made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rao_kernels.demo import picture, report, run
from rao_kernels.demo.sampling import Answer, SamplingOptions
from rao_kernels.demo.task import make_tasks
from tests.train.tiny import save_tiny

SETTINGS = run.Settings(train_prompts=8, held_out_prompts=6, scored_prompts=4)


def _made_up(
    folder: Path, prompts: Sequence[str], options: SamplingOptions, *, seed: int, label: str
) -> list[list[Answer]]:
    """Answers with 3, 2, 1 and none of the words."""
    words = [task.words for task in make_tasks(14, SETTINGS.seed)]
    asked = [next(w for w in words if all(word in prompt for word in w)) for prompt in prompts]
    return [[Answer(" ".join(w[:count]) + ".", True) for count in (3, 2, 1, 0)] for w in asked]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, report.Figures]:
    folder = tmp_path_factory.mktemp("demo")
    model = save_tiny(folder / "model", chat=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "sample_answers", _made_up)
        run.run_demo(folder / "out", SETTINGS, model)
        # The folder of a demo before this one is no obstacle.
        return folder / "out", run.run_demo(folder / "out", SETTINGS, model)


def test_files(figures: tuple[Path, report.Figures]) -> None:
    output, found = figures
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((output / "demo.json").read_text())
    assert content["rewards"]["before"] == {"mean": pytest.approx(0.5), "standard_error": 0.0}
    assert content["runs"]["RAO"]["steps"] == content["runs"]["DPO"]["steps"] == 2
    assert content["runs"]["RAO"]["log_z0"] == pytest.approx(5.0)
    rows = [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert rows[0]["rewards"] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert len(found.implicit["RAO"].explicit) == 16
    levels = content["implicit_rewards"]["RAO"]
    assert levels["reward"] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    implicit = report.implicit_reward(found.runs["RAO"], found.implicit["RAO"])
    best = implicit[found.implicit["RAO"].explicit == 1.0]
    assert levels["mean"][-1] == pytest.approx(float(best.mean()))


def test_the_picture_is_drawn_from_the_json_file_alone(
    figures: tuple[Path, report.Figures], tmp_path: Path
) -> None:
    picture.draw(figures[0] / "demo.json", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (figures[0] / "demo.png").read_bytes()


def test_both_start_from_the_same_model(figures: tuple[Path, report.Figures]) -> None:
    rao, dpo = (figures[1].runs[name].curves for name in ("RAO", "DPO"))
    for metric in ("logps/chosen", "logps/rejected"):
        assert rao[metric][0][0] == dpo[metric][0][0] == 0
        assert rao[metric][1][0] == pytest.approx(dpo[metric][1][0], abs=1e-4)
        assert rao[metric][1][-1] != rao[metric][1][0]


def test_losses_of_the_cost_stage_agree(figures: tuple[Path, report.Figures]) -> None:
    ours, plain = figures[1].costs.values()
    assert ours.loss == pytest.approx(plain.loss, rel=0.02)
    assert ours.peak_bytes > 0


def test_text_says_what_was_measured(figures: tuple[Path, report.Figures]) -> None:
    text = report.table(figures[1]) + report.findings(figures[1])
    for words in ("0.500 +- 0.000", "RAO minus DPO", "one standard error", "MiB peak"):
        assert words in text
