"""`rao-kernels sft` on conversations, plain texts and completions, padded and packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rao_kernels.cli.main import main
from tests.train.tiny import save_tiny, tiny_model, tiny_tokenizer, write_jsonl

CONVERSATIONS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "ask a"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "and b"},
            {"role": "assistant", "content": "no no"},
        ]
    },
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "so"}]},
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": CONVERSATIONS,
    "text": [{"text": "the nile is a river"}, {"text": "so it is."}],
    "completion": [{"prompt": "ask a", "completion": "yes"}, {"prompt": "b", "completion": "no"}],
}


def first_loss(folder: Path, rows: list[dict[str, Any]], *more: str) -> float:
    save_tiny(folder / "model", chat=True)
    write_jsonl(folder / "data.jsonl", rows)
    arguments = [
        *("sft", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")),
        *("--output_dir", str(folder / "out"), "--use_cpu", "--max_steps", "1", "--report_to"),
        *("none", "--disable_tqdm", "true", "--logging_steps", "1", "--eval_fraction", "0"),
        *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", *more),
    ]
    assert main(arguments) == 0
    entries = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").open()]
    (loss,) = [entry["loss"] for entry in entries if "loss" in entry]
    return float(loss)


def pieces(row: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return the texts of a record as the template writes them, and which of them are learnt."""
    if "text" in row:
        return [("<s>", False), (row["text"] + "</s>", True)]
    turns = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    found = []
    for turn in turns:
        if turn["role"] == "user":
            found.append((f"<u>{turn['content']}</s>\n", False))
        else:
            found += [("<a>", False), (f"{turn['content']}</s>", True), ("\n", False)]
    return found


def cross_entropy(rows: list[dict[str, Any]]) -> float:
    """Return the mean over all learnt tokens, by plain torch in float64."""
    model, tokenizer = tiny_model().double().eval(), tiny_tokenizer(chat=True)
    losses: list[torch.Tensor] = []
    for row in rows:
        ids: list[int] = []
        learnt: list[bool] = []
        for text, is_learnt in pieces(row):
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += own
            learnt += [is_learnt] * len(own)
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-logps[i - 1, ids[i]] for i in range(1, len(ids)) if learnt[i]]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("shape", list(ROWS))
def test_the_first_loss_is_the_cross_entropy_of_what_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str, packing: bool
) -> None:
    loss = first_loss(tmp_path, ROWS[shape], *(["--packing"] if packing else []))
    assert loss == pytest.approx(cross_entropy(ROWS[shape]), rel=1e-5)
    assert f"shapes: {shape} 2" in capsys.readouterr().out
