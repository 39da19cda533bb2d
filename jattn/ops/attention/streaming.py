"""What an implementation promises that streams over tiles of the keys, and the two ways to run it.

A streaming implementation provides two functions of plain arrays, `stream` and `gradients`, which are neither
differentiated nor batched themselves. `attend` makes of them a function that JAX transforms (see `program`);
`gradients` differentiates a part of the keys with the results over all keys.
"""

import abc
import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arrays import is_static
from ...foundation.numerics import accumulation_dtype
from ...foundation.sharding import vary, varying_axes
from ..dispatch import Implementation, Operation, Unsupported
from .call import Call, Pieces
from .partial import Partial
from .program import Operands, Program, differentiable, differentiated, reverse_mode_only
from .tile import is_float

SYMBOLS = "it cuts lengths into tiles, and here they are symbols (of `jax.export`)"


class Streaming(Implementation):
    """An implementation of attention that stores neither scores nor weights, and recomputes them in the backward pass.

    Subclasses implement `stream`, `gradients` and `describe`, and extend `refuses`. Let s_ij be the scores of the pairs
    that may attend, and d_ij the factor of dropout (1 without):

        softmax normalizers:      p_ij = exp(s_ij - lse_i),    lse_i = log Σ_j exp(s_ij)
        elementwise normalizers:  p_ij = activation(s_ij),     lse_i = log(number of keys that i may attend to)

        stream:  out_i = Σ_j p_ij d_ij value_j

    `run` applies `Normalizer.rescale` to this. The forward pass never holds a whole row of scores. It keeps the maximum
    score so far m, the mass l = Σ exp(s - m) and the sum a = Σ exp(s - m) d value, and updates them for each tile of
    keys with scores s' and values v' (online softmax; Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats 2021,
    arXiv:2112.05682):

        m' = max(m, max_j s'_j),    c = exp(m - m')
        l' = c l + Σ_j exp(s'_j - m'),    a' = c a + Σ_j exp(s'_j - m') d_j v'_j

    At the end lse = m + log l and out = a / l. `gradients` has the equations of the backward pass.
    """

    reverse_mode_only = True

    def refuses(self, call: Call) -> str | None:
        if not is_static(call.q_len, call.kv_len, call.q_heads, call.kv_heads):
            return SYMBOLS
        if call.pieces.normalizer.streams_as is None:
            return f"{type(call.pieces.normalizer).__name__} cannot stream: {call.pieces.normalizer.refusal}"
        return None

    @abc.abstractmethod
    def stream(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        """The streamed sum, its lse and the remainder, before `Normalizer.rescale`, in the accumulation dtype.

        Args:
            call: its `target` is known, and it has at least one batch element, query and key. `call.batch` may begin
                with axes of `jax.vmap`, on which arrays in pieces have size 1.
            query: `[batch..., q_len, q_heads, qk_dim]`, prepared.
            key: `[batch..., kv_len, kv_heads, qk_dim]`, prepared.
            value: `[batch..., kv_len, kv_heads, v_dim]`.
        """

    @abc.abstractmethod
    def gradients(  # type: ignore[override]
        self,
        call: Call,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        results: Partial,
        cotangents: Partial,
    ) -> "Gradients":
        """The gradients over these keys, from what `stream` returns for all keys: the equation is at `gradients`."""

    def plan(self, call: Call) -> Hashable | None:
        """What is known about the call at trace time, such as the tiles to visit; None if it is decided at run time.

        It is passed back as `call.plan`. Outside of `jit`, programs with equal plans share a compilation. It must have
        a method `batched()` that returns the plan with one more leading batch axis, of size 1.

        Args:
            call: unknown arrays in its pieces may be anything but NumPy arrays.
        """
        del call

    def run(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        return attend(self, call, query, key, value)


class Gradients(NamedTuple):
    """Gradients of query, key and value, each in its dtype, and of the pieces' floating-point arrays (else None)."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    pieces: Pieces


def attend(
    implementation: Streaming | Operation, call: Call, query: jax.Array, key: jax.Array, value: jax.Array
) -> Partial:
    """The output, its lse and the remainder, by streaming. Differentiable once, in reverse mode.

    Args:
        implementation: an implementation; or an operation, whose first implementation that accepts the call is taken
            for each target that the program is lowered for.
        call: prepared.
        query: prepared, as in `Streaming.stream`.
        key: prepared, as in `Streaming.stream`.
        value: as in `Streaming.stream`.
    """
    if 0 in (*call.batch, call.q_len, call.kv_len):
        shape = (*call.batch, call.q_len, call.q_heads, call.v_dim)
        nothing = Partial.empty(jax.ShapeDtypeStruct(shape, accumulation_dtype(query, key, value)))
        streamed = vary(nothing, varying_axes(query, key, value))
    else:
        program = Program.of(implementation, call)
        # From here on, any derivative other than the first in reverse mode raises an error.
        operands = Operands(query, key, value, tuple(jax.tree.leaves(call)))
        operands = jax.tree.map(
            lambda leaf: reverse_mode_only(leaf, program.name) if is_float(leaf) else leaf, operands
        )
        streamed = Partial(*differentiable(program, operands))
    out = call.pieces.normalizer.rescale(streamed.out, streamed.lse, streamed.remainder)
    return dataclasses.replace(streamed, out=out.astype(value.dtype))


def gradients(
    implementation: Implementation,
    call: Call,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    results: Partial,
    cotangents: Partial,
) -> Gradients:
    """The gradients of attention with respect to some of the keys, from its results over all keys.

    With o and λ the output and lse over *all* keys, do and dλ their cotangents, and, over the keys j of this call,
    p_ij = exp(s_ij - λ_i), which are the weights of the whole, the gradients of a softmax are (FlashAttention, Dao et
    al. 2022, arXiv:2205.14135; d_ij: what dropout multiplies a weight by, 1 without):

        D_i = Σ_c do_ic o_ic                   (one number for each query: Σ_j p_ij dp_ij, over all keys)
        dvalue_j = Σ_i p_ij d_ij do_i
        dp_ij = d_ij do_i · value_j
        ds_ij = p_ij (dp_ij - D_i + dλ_i)

    and ds is pulled back through the scores to query, key and every array of the pieces. (Of an elementwise normalizer,
    ds_ij = activation'(s_ij) dp_ij.) A row is known by o_i and λ_i alone, and ds of a key by that key: the gradients
    over parts of the keys add up to the gradient of the whole, for query and whatever the parts share. So a ring of
    devices visits the parts again in the backward pass, and keeps nothing of them but its own rows.

    Args:
        implementation: `tiled`, `reference`, or another with `gradients`.
        call: prepared from this part: its keys, `key_positions`, slices of arrays along the keys.
        query: `[..., q_len, q_heads, qk_dim]`, prepared.
        key: `[..., kv_len, kv_heads, qk_dim]`, of this part, prepared.
        value: `[..., kv_len, kv_heads, v_dim]`, of this part.
        results: over all keys, before `Normalizer.rescale`: merged partial results.
        cotangents: of them; that of the remainder is not used.

    Returns:
        The gradients of the prepared query and key, of value, and of the aligned arrays of the pieces.

    Raises:
        Unsupported: the implementation has none, or refuses the normalizer.
    """
    reason = implementation.refuses(call)
    if reason is not None:
        raise Unsupported(f"implementation `{implementation.name}` refuses this call: {reason}.")
    if not isinstance(implementation, Streaming):
        return implementation.gradients(call, query, key, value, results, cotangents)
    leaves, structure = jax.tree.flatten(call)
    if 0 in (*call.batch, call.q_len, call.kv_len):
        zeros = (query, key, value, [leaf for leaf in leaves if is_float(leaf)])
        d_query, d_key, d_value, floats = jax.tree.map(jnp.zeros_like, zeros)
    else:
        program, operands = Program.of(implementation, call), Operands(query, key, value, tuple(leaves))
        saved = (results.out, results.lse, results.remainder), (cotangents.out, cotangents.lse)
        d_query, d_key, d_value, floats = differentiated(program, operands, *saved)
    rest = iter(floats)
    pieces = structure.unflatten([next(rest) if is_float(leaf) else None for leaf in leaves]).pieces
    return Gradients(d_query, d_key, d_value, pieces)
