"""The sandbox in which a model's chat template is compiled and run.

Owns what one expression of a template may make. A template is a program from a file that may be
hostile: jinja2's sandbox keeps it from the process, this one from the memory and the time that an
operator can take all at once. It does not keep a template from looping, or from making much by many
small steps; whoever watches the worker ends that (`step_timeout`).

Invariant: nothing of a template is computed while it is compiled, so that a file can always be
loaded, and answers `generate` whatever its template is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.meta import TrackingCodeGenerator
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from jinja2.compiler import Frame
    from jinja2.runtime import Context

MAX_ITEMS: Final = 32 * 1024 * 1024
"""Most characters, or items of a list, that an operator makes: twice the largest request of the
default configuration, and at most 256 MiB."""

MAX_BITS: Final = 64 * 1024
"""Longest number that an operator makes. Templates count turns."""


class Sandbox(ImmutableSandboxedEnvironment):
    """With operators that refuse to make too much (`OverflowError`)."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, optimized=False)
        self.code_generator_class = _Generator

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":  # often, and of what is there already
            made = left + right
            _check(_length(made), MAX_ITEMS)
            return made
        if not (isinstance(left, int) and isinstance(right, int)):
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


def _num_repeated(left: Any, right: Any) -> int:
    """Items of a text or list times a number, in either order."""
    if isinstance(left, int):
        left, right = right, left
    return _length(left) * right if isinstance(right, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check(size: int, most: int) -> None:
    if size > most:
        raise OverflowError(f"an operator would make more than {most} characters, items or bits")
