"""`rao_loss` in ten lines: two prompts with two answers each, and a reward for every answer."""

import torch

import rao_kernels as rk


def main() -> None:
    ids = torch.randint(1, 1000, (4, 12))
    ids[1, :5], ids[3, :5] = ids[0, :5], ids[2, :5]  # answers 0, 1 share a prompt, and 2, 3
    ids[:, 0] = 1  # t0, the first token of every prompt
    answers = torch.arange(12).expand(4, 12) >= 5
    batch = rk.SequenceBatch.from_padded(ids, answers, groups=torch.tensor([0, 0, 1, 1]))

    hidden = torch.randn(4, 12, 64, requires_grad=True)  # of the policy
    weight = torch.randn(1000, 64).mul_(0.1).requires_grad_()
    reference = torch.randn(4, 12, 64)  # hidden states of the reference, computed once and cached
    with torch.no_grad():
        ref_logps, ref_prompt = rk.sequence_and_prompt_logps(reference, weight, batch)
    rewards = torch.tensor([1.0, 0.0, 0.7, 0.2])
    output = rk.rao_loss(
        hidden,
        weight,
        batch,
        rewards=rewards,
        ref_logps=ref_logps,
        ref_prompt_logps=ref_prompt,
        log_z0="auto",
    )
    output.loss.backward()
    print(
        f"loss {output.loss.item():.3f}", {k: round(v.item(), 3) for k, v in output.metrics.items()}
    )


if __name__ == "__main__":
    main()
