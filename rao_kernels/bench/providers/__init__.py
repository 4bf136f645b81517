"""Who is measured: one file per third party, one registry, needs per device type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

import torch

from . import cut_cross_entropy, liger, ours, products, pytorch, quack, trl
from ._interface import Call, Outcome, Provider, Unsupported

__all__ = [
    "FLOOR",
    "YARDSTICK",
    "Call",
    "Outcome",
    "Provider",
    "Unsupported",
    "chosen",
    "missing",
    "registry",
]

YARDSTICK = pytorch.PLAIN
FLOOR = products.AS_CALLED


def registry(device: torch.device) -> dict[str, Provider]:
    """Every provider that belongs on the device, by name."""
    parties = (products, pytorch, ours, trl, cut_cross_entropy, liger, quack)
    found = [one for party in parties for one in party.providers(device)]
    return {one.name: one for one in found}


def chosen(device: torch.device, patterns: Sequence[str]) -> list[Provider]:
    """Providers whose name contains one of the patterns, all of them without any; the products and
    the yardstick always."""
    return [
        provider
        for provider in registry(device).values()
        if not patterns
        or provider.is_floor
        or provider.name == YARDSTICK
        or any(pattern.lower() in provider.name.lower() for pattern in patterns)
    ]


def missing(needs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Of the packages that each name needs, those that are not installed, and who needs them."""
    found: dict[str, list[str]] = {}
    for name, packages in needs.items():
        for package in packages:
            try:
                metadata.version(package)
            except metadata.PackageNotFoundError:
                found.setdefault(package, []).append(name)
    return found
