"""Models in safetensors folders, on torch and transformers.

Owns which kind of model is served by which module.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from openclawd.backends import torch_encoder
from openclawd.backends.base import Backend, CannotLoad
from openclawd.backends.encoder_files import is_encoder
from openclawd.backends.pytorch_load import load_config
from openclawd.backends.pytorch_load_causal import is_causal, load_causal
from openclawd.backends.pytorch_options import read_options
from openclawd.backends.safetensors_folder import check_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import LoadSpec


def load(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Backend:
    """Load a model's folder. Raises `CannotLoad` and `LoadAborted`."""
    check_folder(spec.path)
    options = read_options(spec.options)
    if is_encoder(Path(spec.path)):
        return torch_encoder.load(spec, options, on_progress)
    config = load_config(spec, options)
    if is_causal(config, options):
        return load_causal(spec, options, config, on_progress)
    raise CannotLoad(
        f"{spec.path} holds a model of type {config.model_type}, which openclawd cannot run",
        hint="use a model that generates text",
        permanent=True,
    )
