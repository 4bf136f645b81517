"""The measured implementations: one module per library, and a registry of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

import torch

from . import cut_cross_entropy, liger, ours, products, pytorch, quack, trl
from ._interface import Call, Outcome, Provider, Unsupported

__all__ = [
    "BASELINE",
    "REFERENCE",
    "Call",
    "Outcome",
    "Provider",
    "Unsupported",
    "chosen",
    "missing",
    "registry",
]

REFERENCE = pytorch.PLAIN
BASELINE = products.AS_CALLED


def registry(device: torch.device) -> dict[str, Provider]:
    """Return every provider that runs on the device, by name."""
    parties = (products, pytorch, ours, trl, cut_cross_entropy, liger, quack)
    found = [one for party in parties for one in party.providers(device)]
    return {one.name: one for one in found}


def chosen(device: torch.device, patterns: Sequence[str]) -> list[Provider]:
    """Return the providers whose name contains a pattern, all without any; the bare GEMMs and
    the reference always."""
    return [
        provider
        for provider in registry(device).values()
        if not patterns
        or provider.is_baseline
        or provider.name == REFERENCE
        or any(pattern.lower() in provider.name.lower() for pattern in patterns)
    ]


def missing(needs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the packages that are not installed, each with the names that need it."""
    found: dict[str, list[str]] = {}
    for name, packages in needs.items():
        for package in packages:
            try:
                metadata.version(package)
            except metadata.PackageNotFoundError:
                found.setdefault(package, []).append(name)
    return found
