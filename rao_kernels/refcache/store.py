"""Reference log-probabilities on disk: shards of records, written atomically, checked when read.

A cache is a folder ``ref-<key>`` with a manifest of everything the values depend on, and one
safetensors file per shard of consecutive records. A file is complete or absent: it is written under
another name, synced, and renamed. Each holds its key, the range of its records and a digest
of its values.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import DataError, InputError, MissingDependencyError
from .key import cache_key, differing_parts

SHARD_ROWS = 16
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RowLayout:
    """Number of sums stored for a record, one per response; of per-token values and of sums over
    mismatched responses (0: none).
    """

    responses: int
    tokens: int = 0
    kl: int = 0


@dataclass(frozen=True)
class ShardValues:
    """Values of consecutive records, one after another.

    prompt: ``[records]`` fp64 sums. responses, kl: fp64 sums. tokens: fp32.
    """

    prompt: Tensor
    responses: Tensor
    tokens: Tensor
    kl: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class RowValues:
    """Values of one record: sums over prompt and responses, per-token values if they are kept.

    kl: sums over the mismatched responses, if there are any.
    """

    prompt: float
    responses: Tensor
    tokens: Tensor | None
    kl: Tensor | None = None


class ReferenceCache:
    """The shards of one dataset under one reference model."""

    def __init__(
        self, root: str | Path, parts: Mapping[str, str], layout: Sequence[RowLayout]
    ) -> None:
        self.root = Path(root)
        self.parts = dict(parts)
        self.key = cache_key(self.parts)
        self.directory = self.root / f"ref-{self.key[:16]}"
        self.layout = list(layout)
        if not self.layout:
            raise InputError("layout", "at least one record", "none")

    def prepare(self) -> None:
        """Create the folder and its manifest; raise if the folder is another run's."""
        self.directory.mkdir(parents=True, exist_ok=True)
        manifest = self.directory / _MANIFEST
        found = _read_manifest(manifest)
        if found is None:
            write_atomic(manifest, json.dumps(self.parts, indent=1, sort_keys=True).encode())
        elif found != self.parts:
            names = ", ".join(differing_parts(self.parts, found))
            raise DataError(
                str(manifest), f"stale: it was made with another {names}", "Remove the folder."
            )

    def shards(self) -> list[range]:
        """Return the range of records of every shard."""
        starts = range(0, len(self.layout), SHARD_ROWS)
        return [range(start, min(start + SHARD_ROWS, len(self.layout))) for start in starts]

    def path(self, rows: range) -> Path:
        """Return the file of the shard of these records."""
        return self.directory / f"rows-{rows.start:08d}-{rows.stop:08d}.safetensors"

    def write(self, rows: range, values: ShardValues) -> None:
        """Store the values of a shard."""
        tensors = {name: tensor.contiguous() for name, tensor in values.tensors().items()}
        safetensors = _safetensors()
        write_atomic(self.path(rows), safetensors.torch.save(tensors, self._header(rows, tensors)))

    def read(self, rows: range) -> ShardValues:
        """Return the values of a shard; raise `DataError` if missing, damaged or of another run."""
        path = self.path(rows)
        safetensors = _safetensors()
        try:
            # Read, not mapped: if another process truncates a mapped file, access kills this one.
            content = path.read_bytes()
            tensors = safetensors.torch.load(content)
        except FileNotFoundError as error:
            raise DataError(str(path), "missing from the reference cache") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(str(path), f"damaged ({error})") from error
        header = _metadata(content)
        expected = {field.name for field in fields(ShardValues)}
        if set(tensors) != expected or header != self._header(rows, tensors):
            raise DataError(str(path), "damaged or of another run (its digest does not match)")
        values = ShardValues(**tensors)
        self._check(path, rows, values)
        return values

    def load(self) -> list[RowValues]:
        """Return the values of all records; raise `DataError` if a shard is missing or damaged."""
        loaded: list[RowValues] = []
        for rows in self.shards():
            values = self.read(rows)
            layout = [self.layout[row] for row in rows]
            responses = torch.split(values.responses, [row.responses for row in layout])
            tokens = torch.split(values.tokens, [row.tokens for row in layout])
            mismatched = torch.split(values.kl, [row.kl for row in layout])
            for prompt, own, per_token, kl in zip(
                values.prompt.tolist(), responses, tokens, mismatched, strict=True
            ):
                loaded.append(RowValues(prompt, own, _known(per_token), _known(kl)))
        return loaded

    def nearest(self) -> str:
        """Describe how another cache in the folder differs, for the error of a missing one."""
        for manifest in sorted(self.root.glob(f"ref-*/{_MANIFEST}")):
            found = _read_manifest(manifest)
            if found is not None and found != self.parts:
                names = ", ".join(differing_parts(self.parts, found))
                return f"{manifest.parent.name} was made with another {names}"
        return f"no other cache in {self.root}"

    def _header(self, rows: range, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
            digest.update(tensors[name].view(torch.uint8).numpy().data)
        return {
            "key": self.key,
            "start": str(rows.start),
            "stop": str(rows.stop),
            "sha256": digest.hexdigest(),
        }

    def _check(self, path: Path, rows: range, values: ShardValues) -> None:
        layout = [self.layout[row] for row in rows]
        sizes = (
            len(layout),
            sum(row.responses for row in layout),
            sum(row.tokens for row in layout),
            sum(row.kl for row in layout),
        )
        found = tuple(tensor.numel() for tensor in values.tensors().values())
        if found != sizes:
            raise DataError(str(path), f"holds {found} values where its records need {sizes}")
        if not all(bool(tensor.isfinite().all()) for tensor in values.tensors().values()):
            raise DataError(str(path), "holds a value that is not finite")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is complete or as it was before."""
    # The suffix is not a shard's, so that no reader takes the rest of a killed writer for one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _known(values: Tensor) -> Tensor | None:
    return values if len(values) else None


def _read_manifest(path: Path) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(str(path), f"damaged ({error})", "Remove the folder.") from error
    return found if isinstance(found, dict) else {}


def _metadata(content: bytes) -> dict[str, str]:
    """Return the free-form header of a valid safetensors file."""
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return metadata


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError("safetensors", "train") from error
    return safetensors
