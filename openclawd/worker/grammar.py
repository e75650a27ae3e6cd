"""From the format that a request asks for to the grammar of its output, in llguidance's form.

Owns what a format means, and what of it is refused before llguidance sees it. Knows no tokens;
whether a grammar can be followed is the backend's to say.
"""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.errors import InvalidRequest, LimitExceeded
from openclawd.worker.quoting import shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openclawctl.wire.formats import OutputFormat

WHITESPACE: Final = r" |\n[ \t]{0,20}"
"""What may stand between the parts of JSON: one space, or a line break and some indentation, as
models write it. Were it without end, some would write nothing else."""

_MAX_MULTIPLES: Final = 100_000
"""The product of all `multipleOf` of a schema. llguidance makes an automaton of so many states of
them, without a limit of its own: 0.6 s for this many, 18 s for ten times as many (measured
2026-11-23)."""

_MOST_TOLD: Final = 10**12

_MAX_GBNF_RULES: Final = 1000
"""llguidance's translator takes the square of their number, two seconds for this many (measured
2026-11-23)."""

_MULTIPLE: Final = re.compile(r'"multipleOf"\s*:\s*([-+.0-9eE]+)')
_GBNF_CODE_POINT: Final = re.compile(
    r"(?P<plain>\\[^uU])|\\u(?P<four>[0-9A-Fa-f]{4})|\\U(?P<eight>[0-9A-Fa-f]{8})"
)
_HINT: Final = "see `format` in docs/protocol.md for what schemas and grammars may hold"


def grammar_of(output_format: OutputFormat, *, before: str = "") -> str:
    """The grammar of an answer; `before` is Lark for what comes before the answer itself, with a
    rule `before`. Raises a `Problem` for what is no schema or grammar at all."""
    answer = _grammar(output_format)
    if not before:
        return grammar_text(answer)
    whole = {"lark_grammar": f"start: before @answer\n{before}"}
    return grammar_text(whole, {"name": "answer", **answer})


def grammar_text(*grammars: dict[str, Any]) -> str:
    """llguidance's form of grammars, of which the first is the whole."""
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def lark_text(text: str, tokens: Mapping[str, int]) -> str:
    """A text in Lark. Control tokens are named by their ids, for their texts would not do."""
    if not tokens:
        return json.dumps(text)
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
    return " ".join(
        f"<[{tokens[part]}]>" if part in tokens else json.dumps(part) for part in parts if part
    )


def _grammar(output_format: OutputFormat) -> dict[str, Any]:
    text = output_format.text
    match output_format.type:
        case "json_schema":
            return {"json_schema": _schema(text)}
        case "json_object":
            return {"json_schema": _schema('{"type": "object"}')}
        case "regex":
            return {"lark_grammar": _lark_of_regex(text)}
        case "gbnf":
            return {"lark_grammar": _lark_of_gbnf(text)}
        case _:
            check_multiples(text)
            return {"lark_grammar": text}


def refused(reason: str, *, field: str = "format") -> InvalidRequest:
    """The problem of a format, or of tools, that cannot be followed."""
    return InvalidRequest(f"{field!r} cannot be followed: {reason}", hint=_HINT)


def _schema(text: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(text)
    check_multiples(json.dumps(schema))
    options = schema.get("x-guidance")
    given = options if isinstance(options, dict) else {}
    spacing = {} if "whitespace_flexible" in given else {"whitespace_pattern": WHITESPACE}
    return {**schema, "x-guidance": {**spacing, **given}}


def check_multiples(text: str, *, field: str = "format") -> None:
    """Raise `LimitExceeded` when the numbers of a schema would take its worker too long."""
    found = _MULTIPLE.findall(_without_escapes(text))
    product = math.prod({_numerator(number) for number in found})
    if product > _MAX_MULTIPLES:
        # Python writes no number of more than 4,300 digits.
        told = product if product <= _MOST_TOLD else f"of more than {_MOST_TOLD}"
        raise LimitExceeded(
            f"{field!r} is too complex: its values of multipleOf have the product {told}; at"
            f" most {_MAX_MULTIPLES}",
            hint="leave out multipleOf and check the numbers afterwards",
        )


def _numerator(number: str) -> int:
    """Of a number's shortest fraction. By way of a float, whose exponent is bounded."""
    try:
        return max(1, abs(Fraction(repr(float(number))).numerator))
    except ValueError:  # no number, of which llguidance will tell, or an infinite one
        return 1


def _without_escapes(text: str) -> str:
    """A key of JSON may be written with escapes."""
    return re.sub(r"\\u([0-9A-Fa-f]{4})", lambda found: chr(int(found[1], 16)), text)


def _lark_of_regex(pattern: str) -> str:
    from llguidance import regex_to_lark  # here: see `openclawd.backends.constraint`

    return f"start: /{regex_to_lark(pattern, '')}/"


def _lark_of_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if (num_rules := text.count("::=")) > _MAX_GBNF_RULES:
        raise LimitExceeded(
            f"'format' is too complex: {num_rules} rules of GBNF; at most {_MAX_GBNF_RULES}",
            hint="write it as a Lark grammar, or as a JSON schema",
        )
    try:
        return gbnf_to_lark(_GBNF_CODE_POINT.sub(_character, text))
    except RecursionError:
        raise refused("the grammar is nested too deeply") from None
    except Exception as error:  # the translator raises bare exceptions for what is no GBNF
        raise refused(f"the grammar is no GBNF: {shortened(str(error))}") from None


def _character(escape: re.Match[str]) -> str:
    """The translator writes code points as Lark does not read them; plain characters are safe."""
    digits = escape["four"] or escape["eight"]
    if digits is None:
        return escape[0]
    code = int(digits, 16)
    return f"\\x{code:02x}" if code < 0x80 else chr(min(code, 0x10FFFF))
