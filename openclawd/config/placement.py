"""The keys that say which CPUs and GPUs a model gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import PlainValidator

from openclawd.config import values
from openclawd.config.cpus import cpus_or_none
from openclawd.config.keys import key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_DEVICES: Final = 16
"""GGML_CUDA_MAX_DEVICES in ggml-cuda.h, what a llama.cpp with CUDA can use."""


def _gpu_memory(value: object) -> int | None:
    if value is None:
        return None
    size = values.size_bytes(value)
    if size < 1:
        raise ValueError("no memory at all")
    return size


def _shares(value: object) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MOST_DEVICES:
        raise ValueError("not such a list")
    numbers = [float(item) for item in value if _is_share(item)]
    if len(numbers) < len(value) or not any(numbers):
        raise ValueError("not such numbers")
    return numbers


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e6


Cpus = Annotated[frozenset[int] | None, PlainValidator(cpus_or_none)]
GpuMemory = Annotated[int | None, PlainValidator(_gpu_memory)]
GpuWait = Annotated[float, PlainValidator(values.gpu_wait_s)]
Shares = Annotated[list[float] | None, PlainValidator(_shares)]
SplitMode = Literal["layer", "row", "none"] | None
WithoutGpu = Literal["cpu", "fail"]

CPUS: Any = key(
    None,
    meaning="The CPUs of the model's own: its workers are bound to them (several divide them), and"
    " no other model's worker runs on them.",
    allowed="a list such as 0-3,8",
    default_text="see `cpu_cores_per_worker`",
)
WITHOUT_GPU: Any = key(
    "cpu",
    meaning="What becomes of a model that names `devices` or `gpu_layers` when there is no GPU:"
    " it is computed on the CPU and says so, or it does not load.",
    allowed="cpu or fail",
)
TENSOR_SPLIT: Any = key(
    None,
    meaning="Shares of the model for each of its GPUs, in the order of `devices`.",
    allowed=f"a list of at most {_MOST_DEVICES} numbers from 0 to 1000000, one above 0",
    default_text="by what is free on each",
)
SPLIT_MODE: Any = key(
    None,
    meaning="How a model is spread over several GPUs: whole layers, or parts of each (`row`, which"
    " needs a fast link between them), or not at all (`none`: the first one has it).",
    allowed="layer, row or none",
    default_text="layer",
)
GPU_MEMORY_PER_MODEL: Any = key(
    None,
    meaning="GPU memory that one worker of a model may take, on all its GPUs together. With"
    " `gpu_layers: auto` as many layers go there as fit.",
    allowed="a size such as 8GiB",
    default_text="what is free",
)
GPU_WAIT: Any = key(
    30.0,
    alias="gpu_wait",
    meaning="How long after the daemon's start a model that wants a GPU waits for one to appear, as"
    " when the driver is still being loaded.",
    allowed="a duration from 0s to 10m",
    default_text="30s",
)


def contradictions(models: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """CPUs that are named for two models, or too few for a model's workers."""
    owners: dict[int, str] = {}
    for name, model in models.items():
        own = model.cpus or frozenset()
        taken = {owners[cpu]: cpu for cpu in sorted(own, reverse=True) if cpu in owners}
        for owner, cpu in taken.items():
            message = f"CPU {cpu} is named for model {owner} already; no two models share one"
            yield ("models", name, "cpus"), message
        if model.cpus is not None and len(own) < model.scale[1]:
            message = f"found {len(own)} CPUs for {model.scale[1]} workers; each needs one"
            yield ("models", name, "cpus"), message
        owners.update(dict.fromkeys(own, name))
