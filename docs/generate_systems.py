"""Write the tables of docs/systems.md, and draw systems.png: ``python docs/generate_systems.py``.

The figures are those of bench/results/systems.jsonl, the newest of each system by its command as
it is now.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from rao_kernels import _plot

DOCS = Path(__file__).parent
PAGE = DOCS / "systems.md"
sys.path.append(str(DOCS.parent / "bench"))

import systems  # noqa: E402

# Short forms of what all commands of a kind have in common.
_COMMON = re.compile(r" --(save_strategy|bf16|logging_steps)( \w+)?(?= |$)")


def newest() -> dict[str, dict[str, Any]]:
    """Return the last result of each system, by its name; not those of another command."""
    lines = systems.RESULTS.read_text().splitlines()
    found = {row["system"]: row for row in map(json.loads, lines)}
    commands = {one.name: f"rao-kernels {one.command}" for one in systems.SYSTEMS}
    return {name: row for name, row in found.items() if row["command"] == commands.get(name, "")}


def shown(command: str) -> str:
    """Return a command with names for files, without the options that are only this run's."""
    named = command.replace("{model}", "MODEL").replace("{out}", "OUT")
    named = re.sub(r"\{([\w -]+)\}", lambda found: _name(found[1]), named)
    return _COMMON.sub("", f"rao-kernels {named}")


def _name(name: str) -> str:
    """Return the file of this name, or the folder of a system's model."""
    models = [system.name for system in systems.SYSTEMS]
    return name.replace(" ", "_") if name in models else f"{name}.jsonl"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def figures() -> str:
    """Return the table of the systems that were run, with where their figures are from."""
    found = newest()
    start = found["start"]
    head = ["system", "mean reward, held out", "reads"]
    rows = [[start["title"], _reward(start), ""]]
    accuracies = []
    for system in systems.SYSTEMS:
        row = found.get(system.name)
        if row is None:
            continue
        cells = [system.title, _reward(row), ", ".join(row["needs"])]
        (rows if row["kind"] == "policy" else accuracies).append(cells)
    commits = ", ".join(sorted({row["commit"] for row in found.values()}))
    text = f"Commit {commits}; seed {systems.SEED}.\n\n{table(head, rows)}"
    if accuracies:
        head = ["reward model", "accuracy, held-out pairs", "reads"]
        text += f"\n\n{table(head, accuracies)}"
    if any(row["curve"] for row in found.values()):
        text += "\n\n![Mean reward of the samples of each round](systems.png)"
    return text


def _reward(row: dict[str, Any]) -> str:
    return f"{row['reward']:.3f} ± {row['error']:.3f}"


def commands() -> str:
    """Return the command of every system and of every file that systems read."""
    systems_of = [f"# {one.title}\n{shown(one.command)}" for one in systems.SYSTEMS]
    files_of = [
        f"# {name}.jsonl\n{shown(command.replace('{this}', f'{name}.jsonl'))}"
        for name, (_, commands) in systems.FILES.items()
        for command in commands
    ]
    parts = {"Files": files_of, "Systems": systems_of}
    return "\n\n".join(
        f"### {title}\n\n```\n" + "\n".join(lines) + "\n```" for title, lines in parts.items()
    )


def draw(path: Path) -> None:
    """Draw the mean reward of the samples of each round, if a system that samples was run."""
    found = newest()
    runs = [(one.title, found[one.name]) for one in systems.SYSTEMS if one.name in found]
    curves = {title: row["curve"] for title, row in runs if row["curve"]}
    if not curves:
        return
    columns = 4
    lines = -(-len(curves) // columns)
    figure = _plot.new_figure(2.6 * columns, 1.9 * lines, "train")
    for number, (title, values) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(lines, columns, number)
        axes.plot(range(1, len(values) + 1), values, "o-", color=_plot.OURS, markersize=3)
        axes.set_ylim(0, 1)
        _plot.describe(axes, title.partition(":")[0], "round")
    _plot.save(figure, path)


def filled(page: str) -> str:
    """Return the page with the figures and the commands as they are now."""
    return fill(fill(page, "figures", figures()), "commands", commands())


def fill(text: str, name: str, content: str) -> str:
    """Put `content` between the marks of this name."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(DOCS / "systems.png")
