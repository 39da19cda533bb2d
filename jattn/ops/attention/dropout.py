"""Dropout of attention weights, with random bits that are a function of the global index of a pair."""

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_key, check_rate
from ...foundation.arrays import iota
from ...foundation.pieces import Piece, array, number, piece
from ...foundation.sharding import varying_axes


def _mix(bits: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which each input bit flips each output bit with probability near 1/2.

    Two multiply-xorshift rounds with the constants of Chris Wellons' hash prospector ("lowbias32").
    """
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


@piece
class Dropout(Piece):
    """Zero each attention weight with probability `rate`, and divide the others by `1 - rate`.

    The decision is a hash of `key` and of the global (batch, head, query position, key position) of the pair. It
    therefore does not depend on tile sizes, implementation or sharding, and differs between heads and rows. Weights are
    dropped after the softmax, so masked pairs stay masked, and a row that attends to nothing stays zero. A sink keeps
    its share of the mass.

    Args:
        rate: the probability of dropping a weight, in [0, 1].
        key: a JAX random key (typed, or raw uint32 words). A new key does not retrace.
        heads: the global indices of the call's query heads `[q_heads]`; by default 0, 1, ... Required only in your own
            `jax.shard_map`, where a device holds some of the heads.
        examples: the global indices of the call's batch elements `[batch...]`, likewise.

    Raises:
        ValueError: `rate` is outside of [0, 1]; `key` is not a single random key.

    >>> import jax, jattn
    >>> dropout = jattn.Dropout(0.1, jax.random.key(0))
    """

    rate: float | jax.Array = number()
    key: jax.Array = array("word")
    heads: jax.Array | np.ndarray | None = array("head", default=None)
    examples: jax.Array | np.ndarray | None = array(default=None)

    def __post_init__(self):
        check_rate("rate", self.rate)
        check_key("key", self.key)
        if jnp.issubdtype(self.key.dtype, jax.dtypes.prng_key):
            object.__setattr__(self, "key", jax.random.key_data(self.key))

    def indexed(self, batch: tuple[int, ...], q_heads: int, split: tuple[str, ...] = ()) -> "Dropout":
        """Fill in the indices that were left to their defaults.

        Raises:
            ValueError: the arrays are shards of larger ones, split over the mesh axes `split`, and an index is missing.
                Not needed if the key differs between devices.
        """
        heads, examples = self.heads, self.examples
        sizes = jax.sharding.get_abstract_mesh().shape
        shared = [axis for axis in split if sizes.get(axis, 2) > 1 and axis not in varying_axes(self.key)]
        if shared and (heads is None or examples is None):
            raise ValueError(
                "`dropout` needs to know inside `jax.shard_map` which part of the call a device has, or devices along "
                f"the mesh axes {tuple(shared)} would drop the same weights: give the global indices of its query "
                "heads [q_heads] and batch elements [batch...], `Dropout(rate, key, heads=..., examples=...)`. "
                "Arrays that are split over Explicit axes, and `jattn.parallel.Heads`, need nothing."
            )
        if heads is None:
            heads = iota(q_heads, dtype=np.uint32)
        if examples is None:
            examples = iota(*batch, dtype=np.uint32)
        return self.replace(heads=heads, examples=examples)

    def factor(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """The factor on the weights of a tile, 0 or `1 / (1 - rate)`: `[batch..., head, q, k]`, float32."""
        row = jnp.uint32(0x9E3779B9)
        for word in range(self.key.shape[-1]):
            row = _mix(row ^ self.key[..., word])
        for index in (self.examples, self.heads, query):
            row = _mix(row + _mix(jnp.asarray(index).astype(jnp.uint32)))
        column = _mix(key.astype(jnp.uint32) + np.uint32(0x85EBCA6B))
        bits = _mix(row + column * np.uint32(0xC2B2AE35))
        uniform = (bits >> 8).astype(jnp.float32) * np.float32(2**-24)
        keep = uniform >= self.rate
        return jnp.where(keep, 1 / (1 - jnp.minimum(self.rate, 1 - 2**-24)), 0.0).astype(jnp.float32)
