"""A loss of your own: a plain function of log-probabilities, at the speed of the one op."""

import torch
from torch import Tensor

import rao_kernels as rk
from rao_kernels.losses import LossInputs


def huber_rao(inputs: LossInputs, *, beta: float, log_z: float, width: float) -> Tensor:
    """Values [S]: RAO's residual under Huber's loss, so that no single reward dominates."""
    ratio = inputs.logps - inputs.require("ref_logps")
    residual = inputs.require("rewards") - beta * (ratio + log_z)
    return torch.nn.functional.huber_loss(
        residual, torch.zeros_like(residual), reduction="none", delta=width
    )


def main() -> None:
    ids = torch.randint(1, 1000, (4, 12))
    ids[1, :5], ids[3, :5] = ids[0, :5], ids[2, :5]  # answers 0, 1 share a prompt, and 2, 3
    answers = torch.arange(12).expand(4, 12) >= 5
    batch = rk.SequenceBatch.from_padded(ids, answers, groups=torch.tensor([0, 0, 1, 1]))

    hidden = torch.randn(4, 12, 64, requires_grad=True)  # of the policy
    weight = torch.randn(1000, 64).mul_(0.1).requires_grad_()
    with torch.no_grad():
        ref_logps = rk.sequence_logps(torch.randn(4, 12, 64), weight, batch)
    output = rk.fused_loss(
        huber_rao,
        hidden,
        weight,
        batch,
        inputs={"rewards": torch.tensor([1.0, 0.0, 0.7, 0.2]), "ref_logps": ref_logps},
        hyper={"beta": 0.1, "log_z": 2.0, "width": 0.5},
    )
    output.loss.backward()
    print(f"loss {output.loss.item():.3f}, values {output.values.tolist()}")


if __name__ == "__main__":
    main()
