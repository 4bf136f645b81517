"""`rao-kernels cache-ref`: compute the reference log-probs of a training set ahead of training.

It takes the options of `rao-kernels train` and scores what that command would score with them.
`rao-kernels train --ref_cache require --ref_cache_dir DIR` with the same options then runs no
reference. Interrupted, it goes on where it stopped; under torchrun the processes share the work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..train import RAOConfig
from ..train.output_folder import check_writable
from ..train.prepare import each_dataset, say
from .arguments import DataArguments, ModelArguments, ReferenceArguments, record_sources
from .loss_trainer import make_loss_trainer
from .options import parse_options
from .shape_options import ShapeArguments

TYPES = [ModelArguments, DataArguments, ShapeArguments, ReferenceArguments, RAOConfig]


def run(argv: Sequence[str]) -> None:
    """Parse the options, fill the cache, and print where it is and how much was added."""
    model, data, shapes, reference, config = parse_options("rao-kernels cache-ref", TYPES, argv)
    root = _checked(config)
    # The trainer creates its output folder, and this command needs no other than the cache's.
    config.output_dir, config.report_to = str(root), []
    before, start = _files(root), time.monotonic()
    records = record_sources(data, shapes)
    trainer = make_loss_trainer(model, data, config, records, ref_model=reference.ref_model)
    written = {
        path: size
        for path, (time_, size) in _files(root).items()
        if path not in before or before[path][0] != time_
    }
    datasets = [*each_dataset(trainer.train_dataset), *each_dataset(trainer.eval_dataset)]
    say(
        config,
        f"reference log-probs of {sum(map(len, datasets))} prompts are in {root}: {len(written)} "
        f"files written, {sum(written.values()) / 2**20:.2f} MiB, in "
        f"{time.monotonic() - start:.0f} s. The same options of `rao-kernels train` with "
        f"--ref_cache require --ref_cache_dir {root} read them",
    )
    trainer.end()  # type: ignore[no-untyped-call]


def _checked(config: RAOConfig) -> Path:
    """Return the folder of the cache; raise before anything is loaded if there is nothing to do."""
    needs = config.spec.required_inputs(config.hyperparameters())
    if not any(need.startswith("ref_") for need in needs):
        raise InputError("loss", "a loss that reads a reference", repr(config.loss))
    if config.ref_cache_dir is None:
        raise InputError("ref_cache_dir", "the folder to fill", None)
    check_writable(Path(config.ref_cache_dir), "ref_cache_dir")
    return Path(config.ref_cache_dir)


def _files(root: Path) -> dict[Path, tuple[int, int]]:
    """Return when each shard of `root` was written, in ns, and its bytes."""
    found = ((path, path.stat()) for path in root.glob("ref-*/*.safetensors"))
    return {path: (status.st_mtime_ns, status.st_size) for path, status in found}
