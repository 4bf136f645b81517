"""Other names that losses go by, and what to say about a name that is none of ours."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import SequenceMatcher

# Names of papers and of other libraries -> our key.
ALIASES = {
    "dpo": "sigmoid",
    "conservative_dpo": "cdpo",
    "robust_dpo": "robust",
    "dpo_norm": "sigmoid_norm",
    "ln_dpo": "sigmoid_norm",
    "rso": "hinge",
    "rpo_iterative": "dpo_nll",
    "iterative_rpo": "dpo_nll",
    "irpo": "dpo_nll",
    "exo_pref": "exo_pair",
    "dpo_positive": "dpop",
    "smaug": "dpop",
    "caldpo": "cal_dpo",
    "dposhift": "dpo_shift",
    "nemotron_rpo": "rpo_bwd_kl",
    "rpo_sq": "rpo_distill",
    "reward_distillation": "rpo_distill",
    "faye_rpo": "reward_partition",
    "rpo_partition": "reward_partition",
    "slic_hf": "slic",
    "alpha_po": "alphapo",
    "simpo_alpha": "alphapo",
    "drgrpo": "dr_grpo",
    "a_star_po": "a2po",
    "k1.5": "kimi",
    "kimi_k1.5": "kimi",
    "dro_v": "dro_value",
    "nll": "sft",
    "dpo_pair": "sigmoid",
    "dapo_loss": "dapo",
    "grpo_loss": "grpo",
    "reinforce_leave_one_out": "rloo",
}

# Names that stand for several losses, for an option of one or for a function -> for which.
EXPLAINED = {
    "aot_pair": "'aot' (the paper's paired form) or 'aot_unpaired' (what libraries call aot_pair)",
    "apo": "'apo_zero' or 'apo_down' (anchored, on pairs)",
    "apo_pair": "'apo_zero' or 'apo_down' (anchored, on pairs)",
    "wpo": "'sigmoid' (DPO) or another pair loss with the option wpo",
    "ld_dpo": "'sigmoid' (DPO) with the option ld_alpha",
    "f_dpo": "'sigmoid' (DPO) with the option f_divergence",
    "fdpo": "'sigmoid' (DPO) with the option f_divergence",
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

# Losses of the field that are not offered: none of ours is meant by these names.
NOT_OFFERED = frozenset(
    """a3po asft beta_dpo chi_po chipo clip_cov clipcov cppo dppo dppo_kl dppo_tv drpo eaft
    gdpo gkd gpg gspo_token iterative_dpo kl_cov klcov kto_pair minillm nash_md npo odpo
    online_dpo opo pro raft reinforce reinforce++ reinforce_plus_plus remax rft rrhf simnpo
    step_dpo tdpo tdpo2 token_dpo trpo vapo vppo xpo""".split()
)


def spelled(name: str) -> str:
    """`name` in lower case, its words joined by underscores; a dot inside a number stays."""
    plain = name.strip().lower().replace("*", "_star_")
    return re.sub(r"([^a-z0-9.+]|\.(?!\d))+", "_", plain).strip("_")


def advice(name: str, keys: Collection[str]) -> str:
    """What to do about an unknown `name`: a name of the field never gets another's key."""
    plain = spelled(name)
    if plain in EXPLAINED:
        return f"It may mean {EXPLAINED[plain]}."
    if plain in NOT_OFFERED:
        return "This loss is not offered; `fused_loss` also takes a function of your own."
    near = [name for names in (keys, ALIASES) for name in names if _is_typing_error(plain, name)]
    return f"Did you mean {near[0]!r}?" if near else ""


def _is_typing_error(typed: str, name: str) -> bool:
    """Whether `typed` is `name` with letters swapped, or one doubled, left out or mistaken in a
    longer name. Short names of other losses differ by a letter too, mostly the first."""
    if typed[:1] != name[:1]:
        return False
    return sorted(typed) == sorted(name) or SequenceMatcher(None, typed, name).ratio() > 0.88
