"""Fused log-probs of a language-model head, and the alignment losses on top of them."""
