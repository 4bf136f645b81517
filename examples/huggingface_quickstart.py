"""From a Hugging Face model to token log-probs, to RAO's loss, to a trained model."""

import argparse
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import rao_kernels as rk
from rao_kernels.hf import attach_fused_head
from rao_kernels.losses import LOSSES
from rao_kernels.train import RAOConfig, RAOTrainer

PROMPT = "say a colour and stop."
ANSWERS = [" blue.", " let me think about it.", " blue blue blue"]
REWARDS = [1.0, 0.0, 0.3]  # yours: from a rule, a reward model, people


def make_batch(tokenizer) -> tuple[Tensor, Tensor, rk.SequenceBatch]:
    """Ids and mask, [3, T], and what the losses need to know of them."""
    prompt = tokenizer(PROMPT).input_ids  # apart from the answers: all have the same prompt then
    answers = tokenizer(ANSWERS, add_special_tokens=False).input_ids
    joined = {"input_ids": [prompt + answer for answer in answers]}
    padded = tokenizer.pad(joined, padding_side="right", return_tensors="pt")
    ids, mask = padded.input_ids, padded.attention_mask
    learned = (torch.arange(ids.shape[1]) >= len(prompt)) & (mask == 1)
    groups = torch.zeros(len(ids), dtype=torch.int64)  # all three answer the same prompt
    return ids, mask, rk.SequenceBatch.from_padded(ids, learned, mask, groups=groups)


def own_loop(model, tokenizer, steps: int) -> None:
    """A few steps of RAO without a trainer."""
    ids, mask, batch = make_batch(tokenizer)

    def score() -> Tensor:
        """[3, T]: the log-prob of each position's next token; the logits are never held."""
        targets, learned = batch.logp_targets, batch.logp_grad_mask
        out = model(ids, attention_mask=mask, logp_targets=targets, logp_grad_mask=learned)
        return out.token_logps

    with torch.no_grad():  # the reference is the model before training
        ref = batch.loss_inputs(score())
    print("log-probs of the answers:", [round(x, 1) for x in ref.logps.tolist()])
    known = {"ref_logps": ref.logps, "ref_prompt_logps": ref.prompt_logps}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for step in range(steps):
        inputs = batch.loss_inputs(score(), rewards=torch.tensor(REWARDS), **known)
        output = LOSSES["rao"](inputs, beta=0.1, log_z0="auto")
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {output.loss.item():.4f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    own_loop(attach_fused_head(model), tokenizer, args.steps)

    with tempfile.TemporaryDirectory() as folder:  # the same by the trainer
        rows = [{"prompt": PROMPT, "responses": ANSWERS, "rewards": REWARDS}] * 4
        config = RAOConfig(
            folder, learning_rate=2e-5, max_steps=args.steps, save_strategy="no", report_to=[]
        )
        result = RAOTrainer(args.model, args=config, train_dataset=rows).train()
    print(f"RAOTrainer: loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()
