"""SmolLM2 as a torch model: a folder with safetensors in bfloat16, made once from the GGUF file.

`python torch_smollm2.py` makes it, which takes half a minute and 270 MB in `.cache/`; so does
whoever asks for it first. Made in a process of its own: neither torch nor its threads come into the
one that asks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from harness import smollm2_path

_CACHE: Final = Path(__file__).parents[2] / ".cache"
_FOLDER: Final = _CACHE / "smollm2-torch-bf16-1"
"""The number is to be raised when what is made here changes."""


def torch_smollm2_path() -> Path:
    """The folder. Two who make it at once both do, and the first to be done wins."""
    if not _FOLDER.exists():
        tests = Path(__file__).parents[1]
        environ = {**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
        made = subprocess.run([sys.executable, __file__], env=environ, stderr=subprocess.PIPE)
        assert made.returncode == 0, made.stderr.decode(errors="replace")
    return _FOLDER


def _make() -> None:
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as unfinished:
        _write(Path(unfinished) / "model")
        try:
            os.rename(Path(unfinished) / "model", _FOLDER)
        except OSError:
            assert _FOLDER.exists()


def _write(folder: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = smollm2_path()
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # SmolLM2's own, which transformers does not read from a GGUF file.
    splits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(splits)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    _make()
