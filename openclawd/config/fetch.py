"""Where models come from, and where they are put."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, PlainValidator

from openclawd.config import values
from openclawd.config.keys import Section, key

_ENDPOINT: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~/-]*)?")


def _endpoint(value: str) -> str:
    if not _ENDPOINT.fullmatch(value):
        raise ValueError("not such an address")
    return value.rstrip("/")


def _max_bytes(value: object) -> int:
    size = values.size_bytes(value)
    if size < 1:
        raise ValueError("nothing fits into that")
    return size


class FetchConfig(Section):
    """What `openclawd-fetch` does for `openclawctl pull`. Where systemd starts it, its folders and
    its token are those of its unit."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = key(
        "https://huggingface.co",
        meaning="The hub that REPO is looked up in; others with the same addresses will do.",
        allowed="an https address",
    )
    directory: Annotated[str, AfterValidator(values.absolute)] | None = key(
        None,
        meaning="The folder that models are put into, and removed from. It should be one of"
        " `model_paths`.",
        allowed="an absolute path",
        default_text="the first of `model_paths`",
    )
    max_bytes: Annotated[int, PlainValidator(_max_bytes)] = key(
        200 * 2**30,
        alias="max_size",
        meaning="Largest model that is fetched. Half a gibibyte of the disk stays free in any"
        " case.",
        allowed="a size such as 200GiB",
        default_text="200GiB",
    )
    token_file: Annotated[str, AfterValidator(values.absolute)] | None = key(
        None,
        meaning="A file with the hub's token, for models that need a login. It is sent to the host"
        " of `endpoint` only.",
        allowed="an absolute path",
        default_text="none",
    )
    allow_loopback_http: bool = key(
        default=False,
        meaning="Take plain http from this machine, for tests and for a proxy of one's own.",
        allowed="true or false",
    )
    copy_to: Annotated[str, AfterValidator(values.absolute)] | None = key(
        None,
        meaning="A folder on faster storage: a model's file is copied there before it is loaded, if"
        " it fits, and loaded from there as long as it has not changed.",
        allowed="an absolute path",
        default_text="none",
    )
