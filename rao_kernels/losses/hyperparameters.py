"""Types of the hyperparameters of every loss, for editors and type checkers.

    from rao_kernels.losses.hyperparameters import SimPO

    hyper: SimPO = {"beta": 2.0, "gamma": 0.5}
    output = fused_loss("simpo", hidden, weight, batch, inputs=inputs, hyper=hyper)

An editor completes the keys; mypy and pyright reject a misspelt key or a value of another type.
A key that is left out has its default. Written by docs/generate_losses.py: do not edit.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor

LossKey = Literal[
    "rao",
    "dro_value",
    "reward_partition",
    "a2po",
    "qrpo",
    "kimi",
    "dgro",
    "agro",
    "rebel",
    "sigmoid",
    "cdpo",
    "robust",
    "sigmoid_norm",
    "dpo_nll",
    "r_dpo",
    "aot",
    "ipo",
    "hinge",
    "exo_pair",
    "discopop",
    "cal_dpo",
    "dpop",
    "dpo_shift",
    "apo_down",
    "apo_zero",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "rpo_distill",
    "rpo_pessimistic",
    "rpo_bwd_kl",
    "rpo_fwd_kl",
    "infonca",
    "nca",
    "exo",
    "simpo",
    "alphapo",
    "cpo",
    "slic",
    "orpo",
    "tpo",
    "kto",
    "bco",
    "apo_zero_unpaired",
    "aot_unpaired",
    "sppo",
    "ppo",
    "grpo",
    "dr_grpo",
    "dapo",
    "bnpo",
    "gspo",
    "luspo",
    "rloo",
    "gmpo",
    "cispo",
    "sapo",
    "vespo",
    "grao",
    "sft",
    "dft",
]


class RAO(TypedDict, total=False):
    """Hyperparameters of `rao`: RAO paper, Reward Alignment Optimization: A Direct Point-wise
    Alignment Approach, Algorithm 1.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    log_z0: log Z(t0) in nats, a number (the paper's best is 50), or an estimate of it by
        `fit_log_z0` from the rewards given: "auto", their mean over beta, a lower bound that
        centres the targets; "logmeanexp", log mean exp(r / beta), of `ref_rewards` where those are
        given. Default: 50.0.
    prompt_term: treatment of DX. "detached": without gradient (Algorithm 1). "none": DX = 0.
        "grad": with gradient (Eq. 8). "eq7_literal": the offset is ``log_z0 * exp(DX)``, without
        gradient, which reads the number as the linear Z0 of Eq. 7. Default: "detached".
    """

    beta: float
    log_z0: float | Literal["auto", "logmeanexp"]
    prompt_term: Literal["detached", "none", "grad", "eq7_literal"]


class DROV(TypedDict, total=False):
    """Hyperparameters of `dro_value`: Richemond et al. 2024, Offline Regularised Reinforcement
    Learning for Large Language Models Alignment, arXiv 2405.19107.

    tau: KL coefficient, in reward per nat; the implicit reward is tau D. Default: 1.0.
    """

    tau: float


class RewardPartitioning(TypedDict, total=False):
    """Hyperparameters of `reward_partition`: Faye et al. 2025, Value-Free Policy Optimization via
    Reward Partitioning, arXiv 2506.13702.

    tau: KL coefficient, in reward per nat; the implicit reward is tau D. Default: 5.0.
    length_normalized: True takes means over tokens of log-probs, False sums. Default: False.
    """

    tau: float
    length_normalized: bool


class AStarPO(TypedDict, total=False):
    """Hyperparameters of `a2po`: Brantley et al. 2025, Accelerating RL for LLM Reasoning with
    Optimal Advantage Regression, arXiv 2505.20686.

    beta1: temperature of the estimate of V, in reward. Default: 0.5.
    beta2: KL coefficient, in reward per nat; the implicit reward is beta2 D. Default: 0.001.
    """

    beta1: float
    beta2: float


class QRPO(TypedDict, total=False):
    """Hyperparameters of `qrpo`: Matrenok et al. 2025, Quantile Reward Policy Optimization, arXiv
    2507.08068.

    beta: KL coefficient, in transformed reward R per nat; the implicit reward is beta D. Default:
        0.1.
    quantile_reward: transform R of q. "identity": q. "log": log q. "normal": the normal quantile.
        Default: "identity".
    quantile_clamp: clamp that keeps R finite. "half_sample": half a sample away from 0 and 1 for
        "log" and "normal". "authors": a whole sample, as in their code, and for "log" only away
        from 0. Default: "half_sample".
    """

    beta: float
    quantile_reward: Literal["identity", "log", "normal"]
    quantile_clamp: Literal["half_sample", "authors"]


class KimiK15(TypedDict, total=False):
    """Hyperparameters of `kimi`: Kimi Team 2025, Kimi k1.5: Scaling Reinforcement Learning with
    LLMs, arXiv 2501.12599, Eq. 3.

    tau: KL coefficient, in reward per nat; the implicit reward is tau D. Default: 0.1.
    baseline: V. "mean": the group's mean reward. "log_mean_exp": ``tau log mean exp(r / tau)``.
        Default: "mean".
    """

    tau: float
    baseline: Literal["mean", "log_mean_exp"]


class DGRO(TypedDict, total=False):
    """Hyperparameters of `dgro`: Su et al. 2025, DGRO: Enhancing LLM Reasoning via
    Exploration-Exploitation Control and Reward Variance Management (Decoupled Group Reward
    Optimization), arXiv 2505.12951.

    beta1: scale of the policy gradient. Default: 1.0.
    beta2: weight of the squared distance to the sampling policy, in reward per nat. Default: 0.1.
    half: True halves that square, as in the expansion of a KL regulariser; False is the ``beta2
        D^2`` that summaries of the paper print. Default: True.
    baseline: V. "mean": the group's mean reward. "log_mean_exp": the soft value ``t log mean exp(r
        / t)`` at t = b / beta1, the ratio that determines the optimum. Default: "mean".
    """

    beta1: float
    beta2: float
    half: bool
    baseline: Literal["mean", "log_mean_exp"]


class AGRO(TypedDict, total=False):
    """Hyperparameters of `agro`: Tang et al. 2025, RL-finetuning LLMs from on- and off-policy data
    with a single algorithm (Any-Generation Reward Optimization), arXiv 2503.19612.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    unbiased: True divides the variance by k - 1, False by k. Default: False.
    """

    beta: float
    unbiased: bool


class REBEL(TypedDict, total=False):
    """Hyperparameters of `rebel`: Gao et al. 2024, REBEL: Reinforcement Learning via Regressing
    Relative Rewards, arXiv 2404.16767.

    eta: log-ratio per unit of reward, in nats; 1 / beta of other losses. Default: 1.0.
    """

    eta: float


class DPO(TypedDict, total=False):
    """Hyperparameters of `sigmoid`: Rafailov et al. 2023, Direct Preference Optimization, arXiv
    2305.18290, Eq. 7.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    label_smoothing: assumed share of flipped labels, from 0 to 1, as in cDPO; 0 is off. Default:
        0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class CDPO(TypedDict, total=False):
    """Hyperparameters of `cdpo`: Mitchell 2023, A note on DPO with noisy preferences & relationship
    to IPO, ericmitchell.ai/cdpo.pdf, Eq. 3.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    label_smoothing: e, the assumed share of flipped labels, from 0 to 1; 0 is DPO. Default: 0.1.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class RobustDPO(TypedDict, total=False):
    """Hyperparameters of `robust`: Chowdhury et al. 2024, Provably Robust DPO: Aligning Language
    Models with Noisy Feedback, arXiv 2403.00409.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    label_smoothing: e, the share of flipped labels, from 0 to below 1/2. Default: 0.1.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class LengthNormalisedDPO(TypedDict, total=False):
    """Hyperparameters of `sigmoid_norm`: Lambert et al. 2024, Tulu 3: Pushing Frontiers in Open
    Language Model Post-Training, arXiv 2411.15124.

    beta: KL coefficient, in reward per nat of mean log-ratio; the implicit reward is beta D / n.
        Default: 0.1.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class DPONLL(TypedDict, total=False):
    """Hyperparameters of `dpo_nll`: Pang et al. 2024, Iterative Reasoning Preference Optimization,
    arXiv 2404.19733, Eq. 1.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    sft_weight: weight of the chosen response's NLL per token, 0 or more; 0 is DPO. Default: 1.0.
    label_smoothing: assumed share of flipped labels in the DPO term, from 0 to 1; 0 is off.
        Default: 0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    sft_weight: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class RDPO(TypedDict, total=False):
    """Hyperparameters of `r_dpo`: Park et al. 2024, Disentangling Length from Quality in Direct
    Preference Optimization, arXiv 2403.19159.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    alpha: cost on the reward, per token: it shrinks the gradient where the chosen response is the
        longer one. Default: 0.01.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    alpha: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class AOT(TypedDict, total=False):
    """Hyperparameters of `aot`: Melnyk et al. 2024, Distributional Preference Alignment of LLMs via
    Optimal Transport, arXiv 2406.05882.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.01.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    """

    beta: float
    label_smoothing: float


class IPO(TypedDict, total=False):
    """Hyperparameters of `ipo`: Azar et al. 2023, A General Theoretical Paradigm to Understand
    Learning from Human Preferences, arXiv 2310.12036, Eq. 17.

    tau: KL coefficient, in reward per nat: the margin's target is 1 / (2 tau) nats. Default: 0.1.
    length_normalized: True takes D as a mean over tokens, False as a sum. Default: False.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    tau: float
    length_normalized: bool
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class RSOHinge(TypedDict, total=False):
    """Hyperparameters of `hinge`: Liu et al. 2023, Statistical Rejection Sampling Improves
    Preference Optimization, arXiv 2309.06657.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class EXOPair(TypedDict, total=False):
    """Hyperparameters of `exo_pair`: Ji et al. 2024, Towards Efficient Exact Optimization of
    Language Model Alignment, arXiv 2402.00856, Eq. 16.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    label_smoothing: e, the target probability of the rejected response, above 0 and below 1.
        Default: 0.001.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    label_smoothing: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class DiscoPOP(TypedDict, total=False):
    """Hyperparameters of `discopop`: Lu et al. 2024, Discovering Preference Optimization Algorithms
    with and for Large Language Models, arXiv 2406.08414, Eq. 5.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.05.
    tau: temperature, in reward, of the gate g between the logistic and the exponential loss.
        Default: 0.05.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    tau: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class CalDPO(TypedDict, total=False):
    """Hyperparameters of `cal_dpo`: Xiao et al. 2024, Cal-DPO: Calibrated Direct Preference
    Optimization for Language Model Alignment, arXiv 2412.14516.

    beta: KL coefficient, in reward per nat: the targets of D are +-1 / (2 beta) nats. Default: 0.1.
    calibration_weight: w, the weight of the two squares, 0 or more. Default: 1.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    calibration_weight: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class DPOP(TypedDict, total=False):
    """Hyperparameters of `dpop`: Pal et al. 2024, Smaug: Fixing Failure Modes of Preference
    Optimisation with DPO-Positive, arXiv 2402.13228.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.3.
    dpop_lambda: weight of the penalty relative to the margin, 0 or more; 0 is DPO. Default: 50.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    dpop_lambda: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class DPOShift(TypedDict, total=False):
    """Hyperparameters of `dpo_shift`: Yang et al. 2025, DPO-Shift: Shifting the Distribution of
    Direct Preference Optimization, arXiv 2502.07599.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    shift: weight of the rejected response, from 0 to 1; 1 is DPO. Default: 0.95.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    shift: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class APODown(TypedDict, total=False):
    """Hyperparameters of `apo_down`: D'Oosterlinck et al. 2024, Anchored Preference Optimization
    and Contrastive Revisions, arXiv 2408.06266, Eq. 8.

    beta: KL coefficient, in reward per nat; the implicit reward is a = beta D. Default: 0.1.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class APOZero(TypedDict, total=False):
    """Hyperparameters of `apo_zero`: D'Oosterlinck et al. 2024, Anchored Preference Optimization
    and Contrastive Revisions, arXiv 2408.06266, Eq. 7.

    beta: KL coefficient, in reward per nat; the implicit reward is a = beta D. Default: 0.1.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class NCAPair(TypedDict, total=False):
    """Hyperparameters of `nca_pair`: Chen et al. 2024, Noise Contrastive Alignment of Language
    Models with Explicit Rewards, arXiv 2402.05369, Sec. 4.

    beta: KL coefficient, in reward per nat; the implicit reward is a = beta D. Default: 0.01.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class BCOPair(TypedDict, total=False):
    """Hyperparameters of `bco_pair`: Jung et al. 2024, Binary Classifier Optimization for Large
    Language Model Alignment, arXiv 2404.04656.

    beta: KL coefficient, in reward per nat; the implicit reward is a = beta D. Default: 0.01.
    delta: level of the implicit rewards a: a running mean that the caller keeps; no gradient.
        Default: 0.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    delta: Tensor | float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class SPPOHard(TypedDict, total=False):
    """Hyperparameters of `sppo_hard`: Wu et al. 2024, Self-Play Preference Optimization for
    Language Model Alignment, arXiv 2405.00675, Eq. 4.7.

    beta: KL coefficient, in reward per nat, 1 / eta of the paper: the targets of D are +-1 / (2
        beta) nats. Default: 0.001.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    """

    beta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool


class RewardDistillation(TypedDict, total=False):
    """Hyperparameters of `rpo_distill`: Fisch et al. 2024, Robust Preference Optimization through
    Reward Model Distillation, arXiv 2405.19316.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class PessimisticDistillation(TypedDict, total=False):
    """Hyperparameters of `rpo_pessimistic`: Fisch et al. 2024, Robust Preference Optimization
    through Reward Model Distillation, arXiv 2405.19316.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    gamma: weight of the KL of the reference to the policy, 0 or more; 0 is off. Default: 0.0.
    minimum: "pair" takes the minimum over reward models for each pair, "batch" over the models'
        means of the batch, which do not add up over its parts. Default: "pair".
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    gamma: float
    minimum: Literal["pair", "batch"]
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class NemotronRPOBackwardKL(TypedDict, total=False):
    """Hyperparameters of `rpo_bwd_kl`: Adler et al. (NVIDIA) 2024, Nemotron-4 340B Technical
    Report, arXiv 2406.11704.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.2.
    eta: scale of the reward gap, above 0. Default: 1.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    eta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class NemotronRPOForwardKL(TypedDict, total=False):
    """Hyperparameters of `rpo_fwd_kl`: Adler et al. (NVIDIA) 2024, Nemotron-4 340B Technical
    Report, arXiv 2406.11704.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.2.
    eta: scale of the reward gap, above 0. Default: 1.0.
    ld_alpha: weight, from 0 to 1, of the tokens beyond the shorter response's length; 1 is off
        (LD-DPO, Liu et al. 2024, arXiv 2409.06411). Default: 1.0.
    ld_reference: True applies those weights to the reference too, False to the policy only.
        Default: True.
    wpo: True weighs each pair, without gradient, by the product of its responses' ``exp(mean(l_t -
        log sum_v p_v^2))`` (WPO, Zhou et al. 2024, arXiv 2406.11827); "clamped" clamps that weight
        at 1; False is off. Default: False.
    f_divergence: divergence to the reference that regularises the reward, "reverse_kl",
        "forward_kl", "js" or "alpha"; its derivative replaces D (f-DPO, Wang et al. 2023, arXiv
        2309.16240). Default: "reverse_kl".
    f_alpha: the paper's alpha of the alpha-divergence; 0 is the reverse KL. Default: 0.5.
    """

    beta: float
    eta: float
    ld_alpha: float
    ld_reference: bool
    wpo: Literal["clamped"] | bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: float


class InfoNCA(TypedDict, total=False):
    """Hyperparameters of `infonca`: Chen et al. 2024, Noise Contrastive Alignment of Language
    Models with Explicit Rewards, arXiv 2402.05369, Sec. 3.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.01.
    alpha: temperature of the softmax over rewards, in reward; towards 0 only the best response
        counts. Default: 0.01.
    """

    beta: float
    alpha: float


class NCA(TypedDict, total=False):
    """Hyperparameters of `nca`: Chen et al. 2024, Noise Contrastive Alignment of Language Models
    with Explicit Rewards, arXiv 2402.05369, Sec. 4.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.01.
    alpha: temperature of the softmax over rewards, in reward; towards 0 only the best response
        counts. Default: 0.01.
    """

    beta: float
    alpha: float


class EXO(TypedDict, total=False):
    """Hyperparameters of `exo`: Ji et al. 2024, Towards Efficient Exact Optimization of Language
    Model Alignment, arXiv 2402.00856.

    beta: KL coefficient (the paper's beta_pi), in reward per nat; the implicit reward is beta D.
        Default: 0.1.
    alpha: temperature of the softmax over rewards (the paper's beta_r), in reward; towards 0 only
        the best response counts. Default: 0.1.
    """

    beta: float
    alpha: float


class SimPO(TypedDict, total=False):
    """Hyperparameters of `simpo`: Meng et al. 2024, SimPO: Simple Preference Optimization with a
    Reference-Free Reward, arXiv 2405.14734, Eq. 6.

    beta: scale of the implicit reward beta lbar, in reward per nat of mean log-probability.
        Default: 2.0.
    gamma: target margin between the implicit rewards, in reward. Default: 0.5.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    """

    beta: float
    gamma: float
    label_smoothing: float


class AlphaPO(TypedDict, total=False):
    """Hyperparameters of `alphapo`: Gupta et al. 2025, AlphaPO: Reward Shape Matters for LLM
    Alignment, arXiv 2501.03884.

    beta: scale of the implicit reward R, in reward per nat of mean log-probability. Default: 2.5.
    gamma: target margin between the implicit rewards, in reward. Default: 0.1.
    alpha: shape of the reward; 0 is SimPO. Default: 0.25.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    """

    beta: float
    gamma: float
    alpha: float
    label_smoothing: float


class CPO(TypedDict, total=False):
    """Hyperparameters of `cpo`: Xu et al. 2024, Contrastive Preference Optimization, arXiv
    2401.08417.

    beta: scale of the implicit reward beta L, in reward per nat. Default: 0.1.
    sft_weight: weight of the chosen responses' NLL, 0 or more; 0 is off. Default: 1.0.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    """

    beta: float
    sft_weight: float
    label_smoothing: float


class SLiCHF(TypedDict, total=False):
    """Hyperparameters of `slic`: Zhao et al. 2023, SLiC-HF: Sequence Likelihood Calibration with
    Human Feedback, arXiv 2305.10425, Sec. 2.

    margin: target margin between the log-probabilities, in nats. Default: 1.0.
    sft_weight: weight of the chosen response's likelihood, 0 or more; 0 is off. Default: 0.1.
    """

    margin: float
    sft_weight: float


class ORPO(TypedDict, total=False):
    """Hyperparameters of `orpo`: Hong et al. 2024, ORPO: Monolithic Preference Optimization without
    Reference Model (Odds Ratio Preference Optimization), arXiv 2403.07691, Eq. 6.

    lam: weight of the odds-ratio term beside the likelihood, 0 or more. Default: 0.1.
    """

    lam: float


class TPO(TypedDict, total=False):
    """Hyperparameters of `tpo`: Saeidi et al. 2024, Triple Preference Optimization, arXiv
    2405.16681.

    beta: scale of the implicit reward beta L, in reward per nat. Default: 0.01.
    sft_weight: weight of the gold responses' NLL, 0 or more; 0 is off. Default: 1.0.
    length_normalized: True takes lbar in place of L (TPO-L). Default: False.
    gamma: target margin between the implicit rewards, in reward. Default: 0.0.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    """

    beta: float
    sft_weight: float
    length_normalized: bool
    gamma: float
    label_smoothing: float


class KTO(TypedDict, total=False):
    """Hyperparameters of `kto`: Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic
    Optimization (Kahneman-Tversky Optimization), arXiv 2402.01306.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    desirable_weight: lamD, the weight of desirable responses, above 0. Default: 1.0.
    undesirable_weight: lamU, the weight of the others, above 0. Default: 1.0.
    """

    beta: float
    desirable_weight: float
    undesirable_weight: float


class BCO(TypedDict, total=False):
    """Hyperparameters of `bco`: Jung et al. 2024, Binary Classifier Optimization for Large Language
    Model Alignment, arXiv 2404.04656.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.01.
    delta: level of the implicit rewards ``beta D``: a running mean that the caller keeps, or None
        for the batch's own mean; no gradient. Default: None.
    """

    beta: float
    delta: float | None


class APOZeroUnpaired(TypedDict, total=False):
    """Hyperparameters of `apo_zero_unpaired`: D'Oosterlinck et al. 2024, Anchored Preference
    Optimization and Contrastive Revisions, arXiv 2408.06266.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.1.
    desirable_weight: lamD, the weight of desirable responses, above 0. Default: 1.0.
    undesirable_weight: lamU, the weight of the others, above 0. Default: 1.0.
    """

    beta: float
    desirable_weight: float
    undesirable_weight: float


class AOTUnpaired(TypedDict, total=False):
    """Hyperparameters of `aot_unpaired`: Melnyk et al. 2024, Distributional Preference Alignment of
    LLMs via Optimal Transport, arXiv 2406.05882.

    beta: KL coefficient, in reward per nat; the implicit reward is beta D. Default: 0.01.
    label_smoothing: assumed share of flipped labels, from 0 to 1; 0 is off. Default: 0.0.
    """

    beta: float
    label_smoothing: float


class SPPO(TypedDict, total=False):
    """Hyperparameters of `sppo`: Wu et al. 2024, Self-Play Preference Optimization for Language
    Model Alignment, arXiv 2405.00675, Eq. 4.7.

    eta: scale of the target log-ratio, in nats; 1 / beta. Default: 1000.0.
    """

    eta: float


class PPO(TypedDict, total=False):
    """Hyperparameters of `ppo`: Schulman et al. 2017, Proximal Policy Optimization Algorithms,
    arXiv 1707.06347, Eq. 7.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.2.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.2.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    value_coef: weight of the value model's error; 0 leaves the error out. Default: 0.1.
    value_clip: largest change of V from V_old, in reward, before the error is clipped; None for the
        plain squared error. Default: 0.2.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    value_coef: float
    value_clip: float | None


class GRPO(TypedDict, total=False):
    """Hyperparameters of `grpo`: Shao et al. 2024, DeepSeekMath: Pushing the Limits of Mathematical
    Reasoning in Open Language Models (Group Relative Policy Optimization), arXiv 2402.03300, Eq. 3.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.2.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.2.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class DrGRPO(TypedDict, total=False):
    """Hyperparameters of `dr_grpo`: Liu et al. 2025, Understanding R1-Zero-Like Training: A
    Critical Perspective, arXiv 2503.20783.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.2.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.2.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    max_completion_length: L, the generation budget in tokens; None for 1. Default: None.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    max_completion_length: float | None


class DAPO(TypedDict, total=False):
    """Hyperparameters of `dapo`: Yu et al. 2025, DAPO: An Open-Source LLM Reinforcement Learning
    System at Scale, arXiv 2503.14476.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.2.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.28.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class BNPO(TypedDict, total=False):
    """Hyperparameters of `bnpo`: TRL 2025, GRPO with a mean over the batch's tokens
    (loss_type='bnpo').

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.2.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.2.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class GSPO(TypedDict, total=False):
    """Hyperparameters of `gspo`: Zheng et al. 2025, Group Sequence Policy Optimization, arXiv
    2507.18071.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.0003.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.0004.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class LUSPO(TypedDict, total=False):
    """Hyperparameters of `luspo`: Liu et al. 2026, Length-Unbiased Sequence Policy Optimization:
    Revealing and Controlling Response Length Variation in RLVR, arXiv 2602.05261.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.002.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.0025.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none, also with a
        reference given. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class RLOO(TypedDict, total=False):
    """Hyperparameters of `rloo`: Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE Style
    Optimization for Learning from Human Feedback in LLMs (REINFORCE Leave-One-Out), arXiv
    2402.14740.

    clip_low: the ratio is clipped from below at 1 - clip_low; from 0 to 1. Default: 0.2.
    clip_high: the ratio is clipped from above at 1 + clip_high; 0 or more. Default: 0.2.
    dual_clip: upper bound of the ratio, above 1, where the advantage is negative; None for none.
        Default: None.
    kl_beta: weight of the penalty to the reference, in reward per nat, which is part of the reward;
        0 is none. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_beta: float
    on_policy: bool


class GMPO(TypedDict, total=False):
    """Hyperparameters of `gmpo`: Zhao et al. 2025, Geometric-Mean Policy Optimization, arXiv
    2507.20673.

    clip_low: the log-ratio is clipped from below at -clip_low, in nats; 0 or more. Default: 0.4.
    clip_high: the log-ratio is clipped from above at clip_high, in nats; 0 or more. Default: 0.4.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class CISPO(TypedDict, total=False):
    """Hyperparameters of `cispo`: MiniMax 2025, MiniMax-M1: Scaling Test-Time Compute Efficiently
    with Lightning Attention, arXiv 2506.13585, Eq. 4 and 5.

    clip_low: the weight rho is clipped from below at 1 - clip_low; from 0 to 1. Default: 1.0.
    clip_high: the weight rho is clipped from above at 1 + clip_high; 0 or more. Default: 4.0.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    clip_low: float
    clip_high: float
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class SAPO(TypedDict, total=False):
    """Hyperparameters of `sapo`: Gao et al. 2025, Soft Adaptive Policy Optimization, arXiv
    2511.20347.

    temperature_pos: T where A_i > 0; a larger one lowers the weight of off-policy tokens faster.
        Default: 1.0.
    temperature_neg: T elsewhere. Default: 1.05.
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    temperature_pos: float
    temperature_neg: float
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class VESPO(TypedDict, total=False):
    """Hyperparameters of `vespo`: Shen et al. 2026, VESPO: Variational Sequence-Level Soft Policy
    Optimization for Stable Off-Policy LLM Training, arXiv 2602.10693.

    k: power of the ratio w, a pair: where A_i >= 0, and elsewhere. Default: (2.0, 3.0).
    lam: rate at which the weight decays in w, a pair likewise. Default: (3.0, 2.0).
    kl_beta: weight of the k3 penalty to the reference, in reward per nat; 0 is none. Default: 0.0.
    on_policy: True states that the current policy sampled the responses: ratios are 1, and
        `old_token_logps` must not be given. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        False.
    """

    k: tuple[float, float]
    lam: tuple[float, float]
    kl_beta: float
    on_policy: bool
    eps: float
    population_std: bool


class GRAO(TypedDict, total=False):
    """Hyperparameters of `grao`: Wang et al. 2025, Learning to Align, Aligning to Learn: A Unified
    Approach for Self-Optimized Alignment (Group Relative Alignment Optimization), arXiv 2508.07750,
    Eq. 3 and 4.

    beta: weight of the imitation of the gold answer. Default: 0.5.
    lam: weight of the gap between samples and gold answer. Default: 0.6.
    gold_in_statistics: True takes mean_g and std_g over the samples and the gold answer, which
        bounds the gold answer's advantage; False over the samples alone. Default: False.
    eps: number above 0 that is added to the standard deviation, in reward. Default: 0.0001.
    population_std: True divides squares by the G responses of the group, False by G - 1. Default:
        True.
    """

    beta: float
    lam: float
    gold_in_statistics: bool
    eps: float
    population_std: bool


class SFT(TypedDict, total=False):
    """`sft` has no hyperparameters."""


class DFT(TypedDict, total=False):
    """`dft` has no hyperparameters."""
