"""Every model that tests make, each written when it is first asked for."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import llama_cpp
from harness import smollm2_path
from models.gguf_writer import copy_with_keys
from models.tiny import WRITERS, write_adapter, write_full, write_smollm2_adapter

from openclawd.backends import llama_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.gguf_writer import Value

_DRAFT_NOISE = 0.01  # the same likeliest token at nine of ten positions


class ModelLibrary:
    """Files in `folder`, which the owner removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tiny(self, kind: str) -> Path:
        """A tiny generating model of a memory kind: full, window, recurrent or hybrid."""
        return self._made(f"{kind}.gguf", WRITERS[kind])

    def tiny_draft(self) -> Path:
        """A draft for the tiny model of full attention, which agrees with it mostly."""
        return self._made("draft.gguf", lambda path: write_full(path, noise=_DRAFT_NOISE))

    def tiny_broken(self, *tokens: int) -> Path:
        """The tiny model of full attention, where these tokens make not-a-number of everything."""
        name = f"broken-{len(tokens)}-{min(tokens)}.gguf"
        return self._made(name, lambda path: write_full(path, broken=tokens))

    def tiny_adapter(self, seed: int, kind: str = "full") -> Path:
        """A LoRA adapter for a tiny model; another one for each seed."""
        name = f"{kind}-adapter-{seed}.gguf"
        return self._made(name, lambda path: write_adapter(path, kind, seed=seed))

    def smollm2_adapter(self, seed: int) -> Path:
        """A LoRA adapter for SmolLM2; another one for each seed."""
        name = f"smollm2-adapter-{seed}.gguf"
        return self._made(name, lambda path: write_smollm2_adapter(path, seed=seed))

    def smollm2_with(self, name: str, keys: Mapping[str, Value]) -> Path:
        """SmolLM2 with other keys in its file, such as another chat template."""
        file = f"smollm2-{name}.gguf"
        return self._made(file, lambda path: copy_with_keys(smollm2_path(), path, keys))

    def smollm2_draft(self) -> Path:
        """SmolLM2 quantised once more: no faster, but of another opinion now and then."""
        return self._made("smollm2-draft.gguf", _quantise_smollm2)

    def _made(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self._folder / name
        if not path.exists():
            write(path)
        return path


def _quantise_smollm2(path: Path) -> None:
    llama_log.install()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    source = os.fsencode(smollm2_path())
    status = llama_cpp.llama_model_quantize(source, os.fsencode(path), ctypes.byref(params))
    assert status == 0
