"""Train every system on the demo's task by its command, and reward its fresh held-out answers.

    python bench/systems.py [--only NAME ...] [--output FOLDER]

The task: a sentence with three given words; the reward is the share of them in it. Each system
starts from SmolLM2-135M-Instruct on the same prompts and adds one line to
bench/results/systems.jsonl; systems that are there at this commit are left out. A system whose
command fails is named at the end; the others go on.
`docs/generate_systems.py` makes docs/systems.md of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rao_kernels.demo.model import obtain_model
from rao_kernels.demo.task import make_tasks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "systems.jsonl"
RULE = "--rule rao_kernels.demo.task:share_of_words"
SAMPLING = "--temperature 0.7 --max_new_tokens 32"
SEED = 1


@dataclass(frozen=True)
class System:
    """A system. command: with the names of files in braces; the one named out is the result.

    needs: files that other commands make, see `FILES`. kind: "policy" or "reward model".
    """

    name: str
    title: str
    command: str
    needs: tuple[str, ...] = ("scored",)
    kind: str = "policy"


_TRAIN = (
    "train --model {model} --data {%s} --output_dir {out} --loss %s --learning_rate %s "
    "--num_train_epochs 1 --warmup_steps 4 --per_device_train_batch_size 4 --eval_fraction 0 "
    "--save_strategy no --bf16 --seed 1%s"
)
_ONLINE = (
    "online --model {model} --data {%s} --output_dir {out} --loss %s --learning_rate %s "
    "--rounds 8 --prompts_per_round 8 --responses_per_prompt 4 --per_device_train_batch_size 4 "
    "--temperature 0.7 --max_new_tokens 32 --warmup_steps 2 --logging_steps 1 --save_strategy no "
    "--bf16 --seed 1 " + RULE + "%s"
)


def offline(
    name: str, title: str, more: str = "", *, data: str = "scored", rate: str = "2e-5"
) -> System:
    return System(name, title, _TRAIN % (data, name, rate, f" {more}" if more else ""), (data,))


def online(
    name: str, title: str, more: str = "", *, data: str = "prompts", rate: str = "1e-5"
) -> System:
    command = _ONLINE % (data, name, rate, f" {more}" if more else "")
    return System(f"online {name}", title, command, (data,))


_RATES = "--num_train_epochs 1 --warmup_steps 4 --save_strategy no --bf16 --seed 1"
SYSTEMS = (
    System(
        "sft",
        "SFT",
        "sft --model {model} --data {answers} --output_dir {out} --learning_rate 2e-5 "
        f"--per_device_train_batch_size 8 --eval_fraction 0 {_RATES}",
        ("answers",),
    ),
    System(
        "reward-model",
        "Bradley-Terry reward model, from the base model",
        "reward-model --model {model} --data {scored} --eval_data {held_out_scored} "
        f"--output_dir {{out}} --learning_rate 2e-5 --per_device_train_batch_size 8 {_RATES}",
        ("scored", "held_out_scored"),
        "reward model",
    ),
    System(
        "reward-model-of-sft",
        "Bradley-Terry reward model, from the SFT model",
        "reward-model --model {sft} --data {scored} --eval_data {held_out_scored} "
        f"--output_dir {{out}} --learning_rate 2e-5 --per_device_train_batch_size 8 {_RATES}",
        ("scored", "held_out_scored", "sft"),
        "reward model",
    ),
    offline("rao", "RAO", "--beta 0.1"),
    System(
        "rao on a reward model",
        "RAO on the rewards of the reward model (the paper's pipeline)",
        _TRAIN % ("modelled", "rao", "2e-5", " --beta 0.3"),
        ("modelled",),
    ),
    offline("dpo", "DPO", "--beta 0.1"),
    offline("ipo", "IPO"),
    offline("simpo", "SimPO"),
    # The default rate of its authors' code (ContextualAI/HALOs): most responses are undesirable
    # here, and at 2e-5 they lower the log-probs of all, to a reward of 0.174.
    offline("kto", "KTO", "--beta 0.1", rate="5e-6"),
    offline("orpo", "ORPO"),
    offline("dpop", "DPOP", "--beta 0.1"),
    offline("dpo_shift", "DPO-Shift", "--beta 0.1"),
    offline("cal_dpo", "Cal-DPO"),
    offline("slic", "SLiC-HF"),
    offline("rpo_distill", "RPO (reward distillation)"),
    offline("rpo_pessimistic", "RPO (pessimistic, two reward models)", data="ensemble"),
    offline("reward_partition", "RPO (reward partitioning)"),
    offline("dro_value", "DRO, with its value model"),
    offline("dgro", "DGRO"),
    offline("kimi", "Kimi k1.5, on given responses"),
    offline("qrpo", "QRPO", data="referenced"),
    offline("a2po", "A*-PO, on given responses", data="referenced"),
    offline("tpo", "TPO", data="gold"),
    offline("grao", "GRAO, on given responses", data="gold", rate="1e-5"),
    offline("grpo", "GRPO, on given responses", data="logged", rate="1e-5"),
    online("ppo", "PPO (RLHF): value head, GAE, KL in the reward"),
    online("grpo", "GRPO"),
    online("dr_grpo", "Dr. GRPO"),
    online("dapo", "DAPO"),
    online("bnpo", "BNPO"),
    online("gspo", "GSPO"),
    online("rloo", "RLOO"),
    online("cispo", "CISPO"),
    online("a2po", "A*-PO", data="referenced"),
    online("grao", "GRAO"),
    online("rao", "RAO, iterated", "--beta 0.1 --refresh_reference_every 3", rate="2e-5"),
    online("sppo", "SPPO, iterated", "--refresh_reference_every 1"),
    online("kimi", "Kimi k1.5, iterated", "--refresh_reference_every 1"),
    online("dpo", "DPO, iterated", "--beta 0.1 --refresh_reference_every 3", rate="2e-5"),
)

# Files that commands make: name -> the files they need, and the commands; {this} is the file.
FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "samples": (
        ("prompts",),
        (
            f"generate --model {{model}} --data {{prompts}} --output {{this}} --responses 4 "
            f"{SAMPLING} --dtype bfloat16 --seed 1",
        ),
    ),
    "scored": (("samples",), (f"annotate --data {{samples}} --output {{this}} {RULE}",)),
    "held_out_samples": (
        ("held_out",),
        (
            f"generate --model {{model}} --data {{held_out}} --output {{this}} --responses 4 "
            f"{SAMPLING} --dtype bfloat16 --seed 1",
        ),
    ),
    "held_out_scored": (
        ("held_out_samples",),
        (f"annotate --data {{held_out_samples}} --output {{this}} {RULE}",),
    ),
    "gold": (("samples",), (f"annotate --data {{samples}} --output {{this}} {RULE} --gold",)),
    "logged_samples": (
        ("prompts",),
        (
            "generate --model {model} --data {prompts} --output {this} --responses 4 "
            "--max_new_tokens 32 --old_logps --seed 1",
        ),
    ),
    "logged": (
        ("logged_samples",),
        (f"annotate --data {{logged_samples}} --output {{this}} {RULE}",),
    ),
    "reference_samples": (
        ("prompts",),
        (
            f"generate --model {{model}} --data {{prompts}} --output {{this}} --responses 4 "
            f"{SAMPLING} --dtype bfloat16 --seed 2",
        ),
    ),
    "referenced": (
        ("samples", "reference_samples"),
        (
            f"annotate --data {{samples}} --output {{this}} {RULE} "
            "--ref_samples {reference_samples}",
        ),
    ),
    "modelled": (
        ("samples", "reward-model"),
        ("annotate --data {samples} --output {this} --reward_model {reward-model}",),
    ),
    "ensemble": (
        ("samples", "reward-model", "reward-model-of-sft"),
        (
            "annotate --data {samples} --output {this} --reward_model {reward-model} "
            "{reward-model-of-sft}",
        ),
    ),
}


class Workspace:
    """The folder of the runs: makes each file and each system once."""

    def __init__(self, folder: Path, model: str | None, prompts: int, held_out: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = {"model": model or str(obtain_model(folder / "smollm2"))}
        tasks = make_tasks(prompts + held_out, SEED)
        named = {"prompts": tasks[:prompts], "held_out": tasks[prompts:]}
        for name, part in named.items():
            rows = [{"prompt": t.prompt, "words": t.words, "gold": t.answer} for t in part]
            self._write(name, rows)
        answers = [{"prompt": t.prompt, "completion": t.answer} for t in tasks[:prompts]]
        self._write("answers", answers)

    def _write(self, name: str, rows: Sequence[dict[str, object]]) -> None:
        self.paths[name] = str(self.folder / f"{name}.jsonl")
        Path(self.paths[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def need(self, name: str) -> str:
        """Return the file or the model of this name; make it if it is not there."""
        if name in self.paths:
            return self.paths[name]
        if name in FILES:
            needs, commands = FILES[name]
            self.paths[name] = str(self.folder / f"{name}.jsonl")
            for command in commands:
                self.call(command, {**self._known(needs), "this": self.paths[name]})
            return self.paths[name]
        system = next(one for one in SYSTEMS if one.name == name)
        self.paths[name] = self.train(system)
        return self.paths[name]

    def _known(self, needs: Sequence[str]) -> dict[str, str]:
        return {"model": self.paths["model"], **{name: self.need(name) for name in needs}}

    def train(self, system: System) -> str:
        """Run a system's command; return its folder."""
        out = self.folder / system.name.replace(" ", "_")
        if not (out / "config.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            self.call(system.command, {**self._known(system.needs), "out": str(out)})
        return str(out)

    def reward(self, model: str) -> dict[str, float]:
        """Return the mean reward of fresh answers to the held-out prompts, and its error."""
        out = str(self.folder / "eval")
        command = f"eval --model {{model}} --data {{held_out}} --output_dir {{out}} {SAMPLING} "
        command += f"--samples 4 --bf16 {RULE}"
        given = {"model": model, "held_out": self.paths["held_out"], "out": out}
        self.call(command, given)
        found = json.loads((Path(out) / "eval.json").read_text())
        mean: dict[str, float] = found["mean_reward"]["model"]
        return mean

    def call(self, command: str, files: dict[str, str]) -> None:
        words = [word.format(**files) for word in shlex.split(command)]
        print("\n$ rao-kernels", shlex.join(words), flush=True)
        subprocess.run([sys.executable, "-m", "rao_kernels.cli", *words], check=True, cwd=ROOT)


@dataclass(frozen=True)
class Result:
    """One line of the results. reward, error: of fresh held-out answers; of a reward model its
    accuracy on held-out pairs. curve: mean reward of each round of an online run."""

    system: str
    title: str
    command: str
    needs: list[str]
    kind: str
    reward: float
    error: float
    seconds: float
    curve: list[float]
    commit: str
    seed: int = SEED


def measure(system: System, work: Workspace, commit: str) -> Result:
    for name in system.needs:
        work.need(name)
    began = time.perf_counter()
    out = Path(work.train(system))
    seconds = time.perf_counter() - began
    work.paths[system.name] = str(out)
    curve: list[float] = []
    if system.kind == "reward model":
        report = json.loads((out / "reward_model.json").read_text())
        figure = report["accuracy"]
        error = (figure * (1 - figure) / report["pairs"]) ** 0.5
    else:
        mean = work.reward(str(out))
        figure, error = mean["value"], mean["std_error"]
        lines = (out / "metrics.jsonl").read_text().splitlines()
        rounds = [json.loads(line) for line in lines]
        curve = [one["reward/mean"] for one in rounds if "reward/mean" in one]
    command = f"rao-kernels {system.command}"
    needs = list(system.needs)
    return Result(
        system.name,
        system.title,
        command,
        needs,
        system.kind,
        figure,
        error,
        seconds,
        curve,
        commit,
    )


def done() -> set[tuple[str, str]]:
    """Return the systems in the results, each with its commit."""
    if not RESULTS.exists():
        return set()
    rows = (json.loads(line) for line in RESULTS.read_text().splitlines())
    return {(row["system"], row["commit"]) for row in rows}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of systems; default: all")
    parser.add_argument("--output", type=Path, default=Path("systems_output"))
    parser.add_argument("--model", help="folder of the start model; default: download SmolLM2")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--held_out", type=int, default=32)
    args = parser.parse_args(argv)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    work = Workspace(args.output, args.model, args.prompts, args.held_out)
    known = done()
    before = ("start", commit)
    if before not in known and not args.only:
        mean = work.reward(work.paths["model"])
        figures = (mean["value"], mean["std_error"], 0.0)
        write(Result("start", "the start model", "", [], "policy", *figures, [], commit))
    failed = []
    for system in SYSTEMS:
        asked = system.name in args.only if args.only else (system.name, commit) not in known
        if asked:
            try:
                write(measure(system, work, commit))
            except subprocess.CalledProcessError:
                failed.append(system.name)
    if failed:
        sys.exit(f"a command failed, see above, of: {', '.join(failed)}")


def write(result: Result) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")
    print(f"\n{result.title}: {result.reward:.3f} +- {result.error:.3f}", flush=True)


if __name__ == "__main__":
    main()
