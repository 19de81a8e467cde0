"""A table of how each parameter's per-example norm is computed."""

import html
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from . import checks
from .devices import at_least_at_once
from .forms import Form, Lanes, Plan, plans
from .program import ParamIndex, Program, Site
from .trace import program_of

_FORMS = {
    "unused": "zero",
    "entries": "entries",
    "gram": "Gram",
    "matrices": "matrices",
}
_HEADER = ("parameter", "shape", "used by", "form", "memory", "extra work", "why")


class Row(NamedTuple):
    """How the gradients of one parameter are dealt with.

    Attributes:
      parameter: its path in the tree.
      shape: its shape.
      uses: the steps of the loss that read it.
      form: "Gram": norms without gradients. "matrices": the gradient of every example, made from
        activations. "entries": the same, made by the backward pass itself. "zero": unused.
      bytes: what a batch takes for it, its share by size of what a weight made of several takes.
      operations: the multiplications of a batch for it, beyond an ordinary gradient.
      why: the reason for the form.
      falls_back: whether there is no rule for a step that reads it.
    """

    parameter: str
    shape: tuple[int, ...]
    uses: tuple[str, ...]
    form: str
    bytes: int
    operations: int
    why: str
    falls_back: bool


class Explanation(NamedTuple):
    """The table; `print` shows it in a terminal, and a notebook as HTML.

    Attributes:
      rows: one for each parameter.
      batch_size: the number of examples that memory and work are given for.
    """

    rows: tuple[Row, ...]
    batch_size: int

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The parameters that fall back."""
        return tuple(row.parameter for row in self.rows if row.falls_back)

    def __str__(self) -> str:
        cells = [_HEADER, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADER))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", self._summary()])

    def _repr_html_(self) -> str:
        def row(tag: str, cells: tuple[str, ...]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(row("td", _cells(one)) for one in self.rows)
        return (
            f"<table><thead>{row('th', _HEADER)}</thead><tbody>{body}</tbody></table>"
            f"<p>{html.escape(self._summary())}</p>"
        )

    def _summary(self) -> str:
        names = ", ".join(self.fallbacks) or "none"
        total = _si(sum(row.bytes for row in self.rows), "B")
        return f"Batch of {self.batch_size}: {total} for norms. Without a rule: {names}."


def explain(
    loss: Callable,
    params: Any,
    *example: Any,
    batch_size: int = 1,
    has_aux: bool = False,
    form: Form = "auto",
) -> Explanation:
    """Explains what `clipped_grad` does for each parameter, without running anything.

    Args:
      loss: `loss(params, *example)`, as in `clipped_grad`.
      params: the parameters, or their shapes and dtypes as `jax.ShapeDtypeStruct`.
      *example: one example, or its shapes and dtypes; no batch dimension.
      batch_size: the number of examples to give memory and work for.
      has_aux: whether the loss returns `(scalar, aux)`.
      form: `"auto"`, `"gram"` or `"matrices"`.

    Returns:
      One row for each parameter.

    Raises:
      TypeError: a parameter is no float, or the loss is no real scalar.
      ValueError: the loss has side effects.

    Examples:
      >>> import jax.numpy as jnp
      >>> def loss(params, tokens):
      ...     return jnp.sum(jnp.tanh(tokens @ params["w"] + params["b"]))
      >>> params = {"w": jnp.zeros((32, 64)), "b": jnp.zeros(64)}
      >>> for row in explain(loss, params, jnp.zeros((4, 32)), batch_size=8).rows:
      ...     print(row.parameter, row.form, row.bytes)
      ['b'] entries 2048
      ['w'] Gram 1024
    """
    checks.check_choice("form", form, ("auto", "gram", "matrices"))
    checks.check_params(params)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), x.dtype), params)
    traced = checks.trace(loss, structs, example, has_aux)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    program = program_of(traced.jaxpr, len(paths))
    chosen = plans(program, [0] * len(paths), form, Lanes(batch_size, at_least_at_once(batch_size)))
    rows = []
    for i, path in enumerate(paths):
        own = [plan for plan in chosen if i in plan.parameters]
        rows.append(_row(program, own, ParamIndex(i), path or "params", batch_size))
    return Explanation(tuple(rows), batch_size)


def _row(
    program: Program, own: Sequence[Plan], parameter: ParamIndex, path: str, batch_size: int
) -> Row:
    aval = program.values[program.parameters[parameter]].aval
    uses, floats, operations = [], 0, 0
    for plan in own:
        slots = [s for s in plan.weights if parameter in program.values[s].sources]
        uses += [_use(site) for site in plan.sites if site.weight in slots]
        uses += [name for slot in plan.lifted if slot in slots for name in program.lifted[slot]]
        total = sum(program.values[program.parameters[i]].aval.size for i in plan.parameters)
        floats += plan.chunk * plan.floats * aval.size // max(total, 1)
        operations += batch_size * plan.operations // len(plan.parameters)
    return Row(
        path,
        tuple(aval.shape),
        tuple(dict.fromkeys(uses)),
        " and ".join(dict.fromkeys(_FORMS[plan.form] for plan in own)),
        4 * floats,
        operations,
        "; ".join(dict.fromkeys(plan.why for plan in own)),
        any(plan.falls_back for plan in own),
    )


def _use(site: Site) -> str:
    loops = "".join(f" in scan of {length}" for length in reversed(site.loops))
    return site.eqn.primitive.name + loops


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.parameter + (" (no rule)" if row.falls_back else ""),
        " x ".join(map(str, row.shape)) or "scalar",
        ", ".join(row.uses) or "nothing",
        row.form,
        _si(row.bytes, "B"),
        _si(row.operations, ""),
        row.why,
    )


def _si(number: int, unit: str) -> str:
    value = float(number)
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}".strip()
        value /= 1000
    return f"{value:.3g} T{unit}"
