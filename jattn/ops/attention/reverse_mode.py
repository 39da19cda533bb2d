"""Functions that can be differentiated once, in reverse mode. Every other derivative raises a clear error.

JAX implements reverse mode by tracing the tangents of forward mode and transposing them; tangents are only computed if
forward mode was requested. So the tangent of `reverse_mode_only` is a primitive that can be transposed, but refuses to
be computed or batched.
"""

from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..dispatch import Unsupported

REMEDY = "Use `implementation='reference'`, which has derivatives of any order in both modes."


def _refuse(*unused: Any, **parameters: Any) -> NoReturn:
    del unused, parameters
    raise Unsupported(
        "`tiled` has first derivatives in reverse mode only (`jax.grad`, `jax.vjp`), and this is one in forward mode "
        f"(`jax.jvp`, `jax.jacfwd`, `jax.hessian`, `jax.linearize`). {REMEDY}"
    )


_tangent = Primitive("jattn_reverse_mode_tangent")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent: tangent)
mlir.register_lowering(_tangent, _refuse)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
batching.primitive_batchers[_tangent] = _refuse


def _differentiate(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    (array,), (tangent,) = primals, tangents
    return _array.bind(array), tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent)


_array = Primitive("jattn_reverse_mode")
_array.def_impl(lambda array: array)
_array.def_abstract_eval(lambda array: array)
mlir.register_lowering(_array, lambda context, array: [array])
ad.primitive_jvps[_array] = _differentiate
batching.defvectorized(_array)


def reverse_mode_only(array: jax.Array) -> jax.Array:
    """The array itself. Forward-mode derivatives of anything computed from it raise `Unsupported`.

    >>> import jax.numpy as jnp
    >>> float(jax.grad(lambda x: reverse_mode_only(x) ** 2)(3.0))
    6.0
    """
    return _array.bind(array)


def first_order_only(function: Any) -> Any:
    """Wrap the backward pass of a function so that differentiating it again raises a clear error."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> NoReturn:
        del primals, tangents
        raise Unsupported(
            f"`tiled` has first derivatives in reverse mode only, and this is a derivative of its gradient. {REMEDY}"
        )

    return guarded
