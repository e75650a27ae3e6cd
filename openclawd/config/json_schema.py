"""The schema as JSON Schema, for editors and for programs that write configurations.

Made from the same declarations as the parser and the tables of the documentation. It refuses
nothing that the parser takes: where a value is read in a way of its own (sizes, durations), words
say what is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import BeforeValidator

from openclawd.config import values
from openclawd.config.reference import default_of, keys_of, note, sections
from openclawd.config.schema import Config

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_NIL_IS_EMPTY: Final = (values.empty_if_nil, values.empty_list_if_nil)


def json_schema() -> dict[str, Any]:
    """The whole configuration; the file, read as JSON or YAML, is the instance."""
    schema = Config.model_json_schema(by_alias=True)
    for section in sections():
        described = schema if section is Config else schema["$defs"][section.__name__]
        _describe(described, section)
    return {"$schema": DIALECT, **schema, "title": "openclawd.yaml"}


def _describe(schema: dict[str, Any], section: type[BaseModel]) -> None:
    schema.pop("title", None)
    properties = schema["properties"]
    for name, info in keys_of(section).items():
        properties[name] = _property(properties[name], info)


def _property(schema: dict[str, Any], info: FieldInfo) -> dict[str, Any]:
    for pydantics in ("title", "default", "allowed", "description"):
        schema.pop(pydantics, None)
    allowed, default = note(info, "allowed"), default_of(info)
    words = f"{info.description} Allowed: {allowed}. Default: {default}."
    readers = [each.func for each in info.metadata if isinstance(each, BeforeValidator)]
    if any(reader not in _NIL_IS_EMPTY for reader in readers):
        schema = {}  # the file may hold something else than what comes of it
    elif readers:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return {"description": words, **schema}
