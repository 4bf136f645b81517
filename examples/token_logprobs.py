"""The op in ten lines: log-probabilities of target tokens, without the logits."""

import torch

import rao_kernels as rk


def main() -> None:
    hidden = torch.randn(1024, 576, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(49152, 576, dtype=torch.bfloat16).mul_(0.04).requires_grad_()
    targets = torch.randint(49152, (1024,))
    targets[:256] = -100  # ignored: these rows cost nothing
    logps = rk.linear_logprobs(hidden, weight, targets)
    loss = -logps.sum() / (targets != -100).sum()
    loss.backward()
    print(f"loss {loss.item():.3f}, dhidden {tuple(hidden.grad.shape)}, {hidden.grad.dtype}")


if __name__ == "__main__":
    main()
