"""Which inputs of a program its outputs depend on."""

from typing import Any


def needed_inputs(jaxpr: Any, outputs: list[bool]) -> list[bool]:
    """Which inputs the wanted outputs may depend on."""
    needed = {atom for atom, wanted in zip(jaxpr.outvars, outputs, strict=True) if wanted and not hasattr(atom, "val")}
    for equation in reversed(jaxpr.eqns):
        wanted = [variable in needed for variable in equation.outvars]
        if not any(wanted) and not equation.effects:
            continue
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        used = [True] * len(equation.invars) if inner is None else needed_inputs(inner.jaxpr, wanted)
        needed.update(atom for atom, one in zip(equation.invars, used, strict=True) if one and not hasattr(atom, "val"))
    return [variable in needed for variable in jaxpr.invars]
