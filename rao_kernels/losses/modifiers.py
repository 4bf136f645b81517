"""Options of the pair losses: what stands for a log-ratio, smoothing and weights."""

from __future__ import annotations
