"""Other names of the losses, and advice on names that are unknown."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import SequenceMatcher

# Names of papers and of other libraries -> key of the table.
ALIASES = {
    "dpo": "sigmoid",
    "conservative_dpo": "cdpo",
    "label_smoothed_dpo": "cdpo",
    "robust_dpo": "robust",
    "dpo_robust": "robust",
    "provably_robust_dpo": "robust",
    "dpo_norm": "sigmoid_norm",
    "length_normalized_dpo": "sigmoid_norm",
    "length_normalised_dpo": "sigmoid_norm",
    "ln_dpo": "sigmoid_norm",
    "rso": "hinge",
    "rso_hinge": "hinge",
    "hinge_norm": "hinge",
    "rpo_iterative": "dpo_nll",
    "iterative_rpo": "dpo_nll",
    "irpo": "dpo_nll",
    "exo_pref": "exo_pair",
    "exo_rw": "exo",
    "dpo_rw": "infonca",
    "dpo_positive": "dpop",
    "smaug": "dpop",
    "caldpo": "cal_dpo",
    "dposhift": "dpo_shift",
    "nemotron_rpo": "rpo_bwd_kl",
    "rpo_sq": "rpo_distill",
    "reward_distillation": "rpo_distill",
    "distilled_dpo": "rpo_distill",
    "pessimistic_distillation": "rpo_pessimistic",
    "nemotron_rpo_backward_kl": "rpo_bwd_kl",
    "nemotron_rpo_forward_kl": "rpo_fwd_kl",
    "nemotron_rpo_fwd_kl": "rpo_fwd_kl",
    "faye_rpo": "reward_partition",
    "rpo_partition": "reward_partition",
    "reward_partitioning": "reward_partition",
    "slic_hf": "slic",
    "alpha_po": "alphapo",
    "simpo_alpha": "alphapo",
    "drgrpo": "dr_grpo",
    "a_star_po": "a2po",
    "k1.5": "kimi",
    "kimi_k1.5": "kimi",
    "dro_v": "dro_value",
    "nll": "sft",
    "chunked_nll": "sft",
    "cross_entropy": "sft",
    "dpo_pair": "sigmoid",
    "dapo_loss": "dapo",
    "grpo_loss": "grpo",
    "ppo_clip": "ppo",
    "dpo+nll": "dpo_nll",
    "geo_mean": "gmpo",
    "reinforce_leave_one_out": "rloo",
}

# Names of several losses, of an option of one, or of a function -> what they may mean.
EXPLAINED = {
    "aot_pair": "'aot' (the paper's paired form) or 'aot_unpaired' (what libraries call aot_pair)",
    "apo": "'apo_zero' or 'apo_down' (anchored, on pairs)",
    "apo_pair": "'apo_zero' or 'apo_down' (anchored, on pairs)",
    "wpo": "'sigmoid' (DPO) or another pair loss with the option wpo",
    "ld_dpo": "'sigmoid' (DPO) with the option ld_alpha",
    "f_dpo": "'sigmoid' (DPO) with the option f_divergence",
    "fdpo": "'sigmoid' (DPO) with the option f_divergence",
    "vanilla": "'ppo' (with value_coef=0: the clipped surrogate that verl calls vanilla)",
    "tpo_l": "'tpo' (with length_normalized=True and gamma=0.5)",
    "cpo_simpo": "a sum of 'simpo' (SimPO) and 'sft' (TRL's simpo with cpo_alpha above 0)",
    "mpo": "a sum of 'sigmoid' (DPO) at 0.8, 'bco_pair' at 0.2 and 'sft' at 1.0",
    "tr_dpo": "'sigmoid' (DPO) with a reference that is refreshed during training",
    "sdpo": "'sigmoid' (DPO), run once per part of the data",
    "spin": "'sigmoid' (DPO) with the previous policy's own samples as rejected responses",
    "norm_ipo": "'ipo' (with length_normalized=True)",
    "ipo_norm": "'ipo' (with length_normalized=True)",
    "dpo_sft": "'dpo_nll' (likelihood per pair) or a sum of 'sigmoid' and 'sft'",
    "rpo_sft": "'dpo_nll' (likelihood per pair) or a sum of 'sigmoid' and 'sft'",
    "infonca_pair": "'infonca' (with two responses to a prompt it is pairwise)",
    "gvpo": "'agro' (whose gradient it shares)",
    "tb_vargrad": "'agro' (whose gradient it shares)",
    "trajectory_balance": "'agro' (the gradient of its VarGrad form)",
    "opmd": "'kimi' (online policy mirror descent)",
    "bradley_terry": "'bradley_terry_loss' (a function on rewards, for a reward model)",
    "rpo": "'dpo_nll' (Iterative RPO), 'rpo_bwd_kl' (Nemotron-4), 'rpo_distill' (reward "
    "distillation) or 'reward_partition'",
    "rdpo": "'robust' (provably robust DPO) or 'r_dpo' (length-regularised DPO)",
    "dro": "'dro_value' (Direct Reward Optimisation); the loss per token of verl and Tinker is "
    "not offered",
}

# Losses of the literature that are not offered: no loss here is meant by these names.
NOT_OFFERED = frozenset(
    """a3po asft beta_dpo chi_po chipo clip_cov clipcov cppo dppo dppo_kl dppo_tv dr_dpo drpo eaft
    gdpo gkd gpg gpo gspo_token iterative_dpo kl_cov klcov kto_pair minillm nash_md npo odpo
    online_dpo opo pro raft reinforce reinforce++ reinforce_plus_plus remax rft rrhf simnpo
    step_dpo tdpo tdpo2 token_dpo trpo vapo vppo xpo""".split()
)


def spelled(name: str) -> str:
    """Return `name` in lower case with underscores; a dot inside a number stays."""
    plain = name.strip().lower().replace("*", "_star_")
    return re.sub(r"([^a-z0-9.+]|\.(?!\d))+", "_", plain).strip("_")


def advice(name: str, keys: Collection[str]) -> str:
    """Return a hint for an unknown `name`; the name of another loss is never taken for a typo."""
    plain = spelled(name)
    if plain in EXPLAINED:
        return f"It may mean {EXPLAINED[plain]}."
    if plain in NOT_OFFERED:
        return "This loss is not offered; `fused_loss` also takes a function of your own."
    near = [name for names in (keys, ALIASES) for name in names if _is_typing_error(plain, name)]
    return f"Did you mean {near[0]!r}?" if near else ""


def _is_typing_error(typed: str, name: str) -> bool:
    """True if `typed` has the letters of `name` in another order, or is a close match.

    The first letter must agree: short names of different losses often differ in it alone.
    """
    if typed[:1] != name[:1]:
        return False
    return sorted(typed) == sorted(name) or SequenceMatcher(None, typed, name).ratio() > 0.88
