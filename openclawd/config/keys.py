"""How a configuration key is declared: its type, default, range and meaning in one place.

Owns the base of every section and what an error message or the documentation is told of a key. With
`schema.py` and the other modules of sections, the only place that uses pydantic.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def key(
    default: Any,
    *,
    meaning: str,
    allowed: str,
    default_text: str | None = None,
    alias: str | None = None,
    **constraints: Any,
) -> Any:
    """A field. `allowed` is what an error message and the documentation say may stand there."""
    notes = {"allowed": allowed, "default": default_text}
    return Field(
        default, description=meaning, alias=alias, json_schema_extra=dict(notes), **constraints
    )


def count(default: int | None, *, low: int, high: int, meaning: str, **more: Any) -> Any:
    allowed = f"a whole number from {low} to {high}"
    return key(default, meaning=meaning, allowed=allowed, ge=low, le=high, **more)
