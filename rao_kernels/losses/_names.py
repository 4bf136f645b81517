"""Other names that losses go by, and what to say about a name that is none of ours."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

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
    "aot_pair": "aot",
    "nll": "sft",
    "reinforce_leave_one_out": "rloo",
}

# Names that several losses go by -> which they may mean.
AMBIGUOUS = {
    "rpo": "'dpo_nll' (Iterative RPO), 'rpo_bwd_kl' (Nemotron-4), 'rpo_distill' (reward "
    "distillation) or 'reward_partition'",
    "rdpo": "'robust' (provably robust DPO) or 'r_dpo' (length-regularised DPO)",
    "dro": "'dro_value' (Direct Reward Optimisation); the loss per token of verl and Tinker is "
    "not offered",
}

# Losses of the field that are not offered: none of ours is meant by these names.
NOT_OFFERED = frozenset(
    """asft beta_dpo chi_po clip_cov dppo_kl dppo_tv eaft gdpo gkd gpg kl_cov kto_pair minillm
    nash_md odpo online_dpo opo reinforce reinforce_plus_plus remax tdpo token_dpo xpo""".split()
)


def spelled(name: str) -> str:
    """`name` in lower case, its words joined by underscores; a dot inside a number stays."""
    plain = name.strip().lower().replace("*", "_star_")
    return re.sub(r"([^a-z0-9.]|\.(?!\d))+", "_", plain).strip("_")


def advice(name: str, keys: Collection[str]) -> str:
    """What to do about an unknown `name`: a name of the field never gets another's key."""
    plain = spelled(name)
    if plain in AMBIGUOUS:
        return f"It may mean {AMBIGUOUS[plain]}."
    if plain in NOT_OFFERED:
        return "This loss is not offered; `fused_loss` also takes a function of your own."
    near = get_close_matches(plain, keys, 1) or get_close_matches(plain, ALIASES, 1)
    return f"Did you mean {near[0]!r}?" if near else ""
