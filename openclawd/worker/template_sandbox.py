"""The sandbox in which a model's chat template is compiled and run.

Owns what one expression of a template may make. A template is a program from a file that may be
hostile: jinja2's sandbox keeps it from the process, this one from the memory and the time that an
operator, a filter or a method can take all at once. It does not keep a template from looping, or
from making much by many small steps; whoever watches the worker ends that (`step_timeout`).

Invariant: nothing of a template is computed while it is compiled, so that a file can always be
loaded, and answers `generate` whatever its template is.
"""

from __future__ import annotations

import functools
import re
from string import Formatter
from typing import TYPE_CHECKING, Any, Final

from jinja2 import nodes, pass_eval_context
from jinja2.compiler import CodeGenerator
from jinja2.filters import do_format, do_indent, do_join, do_replace, make_attrgetter
from jinja2.meta import TrackingCodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jinja2.compiler import Frame
    from jinja2.nodes import EvalContext
    from jinja2.runtime import Context

MAX_ITEMS: Final = 32 * 1024 * 1024
"""Most characters, or items of a list, that an operator makes: twice the largest request of the
default configuration, and at most 256 MiB."""

MAX_BITS: Final = 64 * 1024
"""Longest number that an operator makes. Templates count turns."""

MAX_SPACING: Final = 64
"""Characters between any two items of JSON."""

_FILTERS_LEFT_OUT: Final = ("batch", "center", "slice", "urlize", "wordwrap", "xmlattr")
_METHODS_LEFT_OUT: Final = frozenset(
    ("center", "encode", "expandtabs", "ljust", "rjust", "translate", "zfill")
)
"""What makes much of a number or of little, and what no chat template has a use for."""

_WIDE: Final = re.compile(r"\d{5}|\{")
_PERCENT: Final = re.compile(r"%%|%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")
_MAX_DIGITS: Final = 4
"""Of a width. One that is an argument may have any number."""

_TOO_WIDE: Final = "a format has a width of more than four digits"


class Sandbox(ImmutableSandboxedEnvironment):
    """With operators, filters and methods that refuse to make too much (`OverflowError`)."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, optimized=False)
        self.code_generator_class = _Generator
        for name in _FILTERS_LEFT_OUT:
            del self.filters[name]
        self.filters |= _FILTERS
        del self.globals["lipsum"]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _METHODS_LEFT_OUT:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Where jinja2 puts its own in place of a method; it does so for `format`."""
        owner, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if isinstance(owner, str) and name in _METHODS:
            made: Callable[..., str] = functools.partial(_METHODS[name], owner)
            return made
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and isinstance(owner, str):
            _check_format(owner)
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":  # often, and of what is there already
            made = left + right
            _check(_length(made), MAX_ITEMS)
            return made
        if operator == "%":
            _check_percent(left)
        elif not (isinstance(left, int) and isinstance(right, int)):
            _check(_num_repeated(left, right), MAX_ITEMS)
        elif operator == "*":
            _check(left.bit_length() + right.bit_length(), MAX_BITS)
        else:
            _check(left.bit_length() * right, MAX_BITS)
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: tuple[Any, ...]) -> str:
        """What `~` makes."""
        made = "".join(map(str, parts))
        _check(len(made), MAX_ITEMS)
        return made


def variables_of(sandbox: Sandbox, template: str) -> frozenset[str]:
    """The variables that a template asks for: `jinja2.meta.find_undeclared_variables`, which would
    compute constants. Raises whatever jinja2 makes of a template that it cannot compile."""
    generator = _Tracker(sandbox)
    generator.visit(sandbox.parse(template))
    return frozenset(generator.undeclared_identifiers)


class _Generator(CodeGenerator):
    """Leaves constants to be computed when the template runs, and `~` to the sandbox: that is the
    one operator which jinja2 does not intercept."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Tracker(_Generator, TrackingCodeGenerator):
    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.optimizer = None


def check_spacing(*values: str | int | None) -> None:
    """See that what stands between any two items of JSON is not much."""
    for value in values:
        _check(value if isinstance(value, int) else len(value or ""), MAX_SPACING)


# ---- filters and methods ----


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    num_places = text.count(old)
    if 0 <= count < num_places:
        num_places = count
    _check(len(text) + num_places * len(new), MAX_ITEMS)
    return text.replace(old, new, count)


def _join(separator: str, parts: Iterable[Any]) -> str:
    return separator.join(_bounded(separator, parts))


def _bounded(separator: str, parts: Iterable[Any]) -> list[Any]:
    """The parts, if they are not too much when they are joined."""
    found, size = [], 0
    for part in parts:
        size += _length(part) + len(separator)
        _check(size, MAX_ITEMS)
        found.append(part)
    return found


@pass_eval_context
def _replace_filter(
    context: EvalContext, text: Any, old: Any, new: Any, count: int | None = None
) -> str:
    text = str(text)
    _check(len(text) + text.count(str(old)) * len(str(new)), MAX_ITEMS)
    made: str = do_replace(context, text, old, new, count)
    return made


@pass_eval_context
def _join_filter(
    context: EvalContext, value: Any, d: str = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    made: str = do_join(context, _bounded(str(d), map(str, value)), d)
    return made


def _indent_filter(
    text: Any,
    width: Any = 4,
    first: bool = False,  # noqa: FBT001, FBT002 - templates pass these by place, too
    blank: bool = False,  # noqa: FBT001, FBT002
) -> str:
    text = str(text)
    per_line = width if isinstance(width, int) else len(str(width))
    _check(len(text) + (len(text.splitlines()) + 1) * per_line, MAX_ITEMS)
    return do_indent(text, width, first, blank)


def _format_filter(value: Any, *args: Any, **kwargs: Any) -> str:
    _check_percent(str(value))
    return do_format(value, *args, **kwargs)


_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "format": _format_filter,
    "indent": _indent_filter,
    "join": _join_filter,
    "replace": _replace_filter,
}
_METHODS: Final[dict[str, Callable[..., str]]] = {"join": _join, "replace": _replace}


# ---- how much ----


def _check_format(text: str) -> None:
    for _, _, spec, _ in Formatter().parse(text):
        if _WIDE.search(spec or ""):
            raise OverflowError(_TOO_WIDE)


def _check_percent(value: Any) -> None:
    for widths in _PERCENT.findall(value) if isinstance(value, str) else ():
        if any(width == "*" or len(width) > _MAX_DIGITS for width in widths):
            raise OverflowError(_TOO_WIDE)


def _num_repeated(left: Any, right: Any) -> int:
    """Items of a text or list times a number, in either order."""
    if isinstance(left, int):
        left, right = right, left
    return _length(left) * right if isinstance(right, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check(size: int, most: int) -> None:
    if size > most:
        raise OverflowError(f"an expression would make more than {most} characters, items or bits")
