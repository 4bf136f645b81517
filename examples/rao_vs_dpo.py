"""The same data under RAO and under DPO: what each loss does to the model, side by side."""

import argparse
import tempfile
from collections.abc import Sequence

from rao_kernels.train import RAOConfig, RAOTrainer

WORDS = "apple river stone cloud bread tiger lamp music ocean piano queen robot".split()
METRICS = {
    "rewards/accuracies": "best answer ranked above the worst",
    "rewards/margins": "implicit reward, best minus worst",
    "logps/chosen": "log-prob of the best answer, nats",
    "logps/rejected": "log-prob of the worst answer, nats",
}


def make_rows() -> list[dict[str, object]]:
    """Three answers to each prompt. The reward is a rule: half for the word, half for brevity."""
    rows = []
    for word in WORDS:
        answers = [f"{word}.", f"well, the word is {word}, i would say.", "no idea, sorry."]
        rewards = [0.5 * (word in one) + 0.5 * (len(one) <= 8) for one in answers]
        rows.append({"prompt": f"say only {word}", "responses": answers, "rewards": rewards})
    return rows


def train(loss: str, model: str, epochs: float) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out metrics before and after training with `loss`."""
    rows = make_rows()
    with tempfile.TemporaryDirectory() as folder:
        config = RAOConfig(
            folder,
            loss=loss,
            beta=0.1,
            learning_rate=2e-5,
            warmup_steps=2,
            num_train_epochs=epochs,
            per_device_train_batch_size=2,
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        )
        trainer = RAOTrainer(model, args=config, train_dataset=rows[:8], eval_dataset=rows[8:])
        before = trainer.evaluate()
        trainer.train()
        return before, trainer.evaluate()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--epochs", type=float, default=2)
    args = parser.parse_args(argv)

    # RAO learns from all three answers and their rewards, DPO from the best and the worst.
    before, rao = train("rao", args.model, args.epochs)
    _, dpo = train("dpo", args.model, args.epochs)
    print(f"\n{'held-out prompts':<36}{'before':>9}{'RAO':>9}{'DPO':>9}")
    for key, text in METRICS.items():
        cells = [one[f"eval_{key}"] for one in (before, rao, dpo)]
        print(f"{text:<36}" + "".join(f"{cell:>9.3f}" for cell in cells))
    start = before["eval_logps/chosen"]
    moved = [one["eval_logps/chosen"] - start for one in (rao, dpo)]
    print(f"\nThe best answer moved by {moved[0]:+.2f} nats under RAO, {moved[1]:+.2f} under DPO.")
    print("RAO fits every answer's log-ratio to its reward, so the reward says how likely an")
    print("answer becomes. DPO fixes only the gap between two answers: both may become unlikely.")
    print(f"held-out loss {rao['eval_loss']:.4f} (RAO), {dpo['eval_loss']:.4f} (DPO)")


if __name__ == "__main__":
    main()
