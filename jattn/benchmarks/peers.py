"""The libraries that jattn is compared with, each in its preferred layout, if installed."""

import functools
import importlib
import importlib.util
import os
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .sides import Run, Shape, Side, gradient_temporaries, inputs, jax_run

MATMUL = 2048
"""The side of the square matrices whose product measures the machine's matmul rate."""


def matmul_run() -> Run:
    """A float32 product of two square matrices by XLA."""
    left, right = (jax.random.normal(jax.random.key(i), (MATMUL, MATMUL), jnp.float32) for i in range(2))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(left, right))


def matmul() -> Side:
    """The machine's own matmul, for any shape of the row."""
    return Side(f"matmul {MATMUL}³", lambda shape: matmul_run())


def jax_nn(
    *, backward: bool = False, implementation: Literal["xla", "cudnn"] = "xla", window: int | None = None
) -> Side:
    """`jax.nn.dot_product_attention`, causal.

    Args:
        backward: also compute the gradients.
        implementation: cuDNN's kernel, or what XLA makes of the whole matrix of scores.
        window: how many earlier keys a query sees; by default all.
    """

    def attend(query, key, value):
        local = None if window is None else (window, 0)
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=True, local_window_size=local, implementation=implementation
        )

    def missing() -> str | None:
        fits = implementation == "xla" or jax.default_backend() == "gpu"
        return None if fits else "cuDNN's kernel needs an NVIDIA GPU"

    return Side(
        "jax.nn" if implementation == "xla" else "cuDNN",
        functools.partial(jax_run, attend, backward=backward),
        functools.partial(gradient_temporaries, attend),
        missing,
    )


def load_torch() -> Any:
    """PyTorch with one thread per core. Imported by name because it is not a dependency of jattn."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    return torch


def torch_version() -> str | None:
    """PyTorch's version, or None if it is not installed."""
    return None if no_torch() else load_torch().__version__


def no_torch() -> str | None:
    """Why there is no PyTorch to compare with, or None."""
    return None if importlib.util.find_spec("torch") else "PyTorch is not installed"


def _no_torch_compiler() -> str | None:
    return no_torch() or (None if shutil.which("g++") else "PyTorch's compiler needs g++, which is not installed")


def torch_inputs(shape: Shape) -> list[Any]:
    """Query, key, value and cotangent as contiguous `[batch, heads, length, dim]`."""
    torch = load_torch()
    return [torch.from_numpy(array).transpose(1, 2).contiguous() for array in inputs(shape)]


def torch_attention(*, backward: bool = False) -> Side:
    """PyTorch's `scaled_dot_product_attention`, causal."""

    def build(shape: Shape) -> Run:
        torch = load_torch()
        *arrays, cotangent = torch_inputs(shape)
        attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)

        def forward():
            with torch.no_grad():
                return attend(*arrays)

        def both():
            for array in arrays:
                array.requires_grad_()
            return torch.autograd.grad(attend(*arrays), arrays, cotangent)

        return both if backward else forward

    return Side("PyTorch", build, missing=no_torch)


def flex_attention(window: int | None = None, *, mask_included: bool = False) -> Side:
    """PyTorch's compiled `flex_attention`: causal, optionally within a window.

    Args:
        window: how many earlier keys a query sees.
        mask_included: rebuild the block mask in every call, although one is enough for a length.
    """

    def build(shape: Shape) -> Run:
        torch = load_torch()
        flex = importlib.import_module("torch.nn.attention.flex_attention")
        *arrays, _ = torch_inputs(shape)
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
