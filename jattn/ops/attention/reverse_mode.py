"""Functions that are differentiated once, in reverse mode: every other derivative says so.

JAX differentiates in reverse by writing down the tangents of the forward mode, and transposing them: they are computed
only where forward mode is what was asked for. So the tangent of what `reverse_mode_only` returns is an operation that
can be transposed, and that refuses to be computed or batched.
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
    """The array itself; forward derivatives of what is made of it raise `Unsupported`.

    >>> import jax.numpy as jnp
    >>> float(jax.grad(lambda x: reverse_mode_only(x) ** 2)(3.0))
    6.0
    """
    return _array.bind(array)


def first_order_only(function: Any) -> Any:
    """`function`, which is the backward pass of another, with a clear error for whoever differentiates it again."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> NoReturn:
        del primals, tangents
        raise Unsupported(
            f"`tiled` has first derivatives in reverse mode only, and this is a derivative of its gradient. {REMEDY}"
        )

    return guarded
