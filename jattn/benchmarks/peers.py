"""The peers, each found if it is installed, each in its own best layout."""

import functools
import importlib
import importlib.util
import os
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from .sides import Run, Shape, Side, gradient_temporaries, inputs, jax_run

MATMUL = 2048
"""The side of the square matrices whose product is the machine's own rate."""


def matmul_run() -> Run:
    """A float32 product of two square matrices, by XLA."""
    left, right = (jax.random.normal(jax.random.key(i), (MATMUL, MATMUL), jnp.float32) for i in range(2))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(left, right))


def matmul() -> Side:
    """The machine's own matmul, whatever the shape."""
    return Side(f"matmul {MATMUL}³", lambda shape: matmul_run())


def jax_nn(*, backward: bool = False) -> Side:
    """`jax.nn.dot_product_attention`, causal."""

    def attend(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    return Side(
        "jax.nn",
        functools.partial(jax_run, attend, backward=backward),
        functools.partial(gradient_temporaries, attend),
    )


def _torch() -> Any:
    """PyTorch with as many threads as there are cores; imported by name, since it is no dependency of this package."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    return torch


def torch_version() -> str | None:
    """Its version, or None where it is not installed."""
    return None if _no_torch() else _torch().__version__


def _no_torch() -> str | None:
    return None if importlib.util.find_spec("torch") else "PyTorch is not installed"


def _no_torch_compiler() -> str | None:
    return _no_torch() or (None if shutil.which("g++") else "PyTorch's compiler needs g++, which is not installed")


def _torch_inputs(shape: Shape) -> list[Any]:
    """Query, key, value and cotangent as `[batch, heads, length, dim]`, contiguous."""
    torch = _torch()
    return [torch.from_numpy(array).transpose(1, 2).contiguous() for array in inputs(shape)]


def torch_attention(*, backward: bool = False) -> Side:
    """PyTorch's `scaled_dot_product_attention`, causal."""

    def build(shape: Shape) -> Run:
        torch = _torch()
        *arrays, cotangent = _torch_inputs(shape)
        attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)

        def forward():
            with torch.no_grad():
                return attend(*arrays)

        def both():
            for array in arrays:
                array.requires_grad_()
            return torch.autograd.grad(attend(*arrays), arrays, cotangent)

        return both if backward else forward

    return Side("PyTorch", build, missing=_no_torch)


def flex_attention(window: int | None = None, *, mask_included: bool = False) -> Side:
    """PyTorch's `flex_attention`, compiled: causal, within a window if one is given.

    Args:
        window: how many earlier keys a query sees.
        mask_included: build the block mask anew each time, although it is made once for a length.
    """

    def build(shape: Shape) -> Run:
        torch = _torch()
        flex = importlib.import_module("torch.nn.attention.flex_attention")
        *arrays, _ = _torch_inputs(shape)
        attend = torch.compile(flex.flex_attention)

        def allowed(batch, head, query, key):
            del batch, head
            causal = query >= key
            return causal if window is None else causal & (query - key <= window)

        def block_mask():
            return flex.create_block_mask(allowed, None, None, shape.length, shape.length, device="cpu")

        made = None if mask_included else block_mask()

        def forward():
            with torch.no_grad():
                return attend(*arrays, block_mask=block_mask() if made is None else made)

        return forward

    return Side("PyTorch flex", build, missing=_no_torch_compiler)
