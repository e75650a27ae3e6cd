"""The options of the torch backend that a model's configuration may set.

Owns the keys alone; what they do is `openclawd.backends.pytorch_options`'s.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, PlainValidator

from openclawd.config import values
from openclawd.config.keys import Section, key

_DEVICE: Final = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def _device(value: object) -> str:
    if isinstance(value, str) and _DEVICE.fullmatch(value):
        return value
    raise ValueError("not a device")


class TorchOptions(Section):
    """None: not set, and the backend's default holds."""

    device: Annotated[str | None, PlainValidator(_device)] = key(
        None,
        meaning="torch: where the model is computed. `devices` says which cards there are; `cuda:1`"
        " is the second of those.",
        allowed="auto, cpu, cuda, or cuda: with a number",
        default_text="auto: cuda where there is a card, else cpu",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = key(
        None,
        meaning="torch: number format of weights and KV cells; `auto` is that of the files.",
        allowed="auto, bfloat16, float16 or float32",
        default_text="auto",
    )
    quantize: Annotated[
        Literal["off", "8bit", "4bit"] | None, BeforeValidator(values.off_if_false)
    ] = key(
        None,
        meaning="torch: load the weights in 8 or 4 bits, which takes a card and the package"
        " bitsandbytes.",
        allowed="off, 8bit or 4bit",
        default_text="off",
    )
    trust_remote_code: bool | None = key(
        None,
        meaning="torch: run Python code that comes with the model, as the daemon's user. It can"
        " read what that user can, prompts included: only for code that you have read.",
        allowed="true or false",
        default_text="false",
    )
