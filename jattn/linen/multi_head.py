"""Multi-head attention for linen."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..foundation.arrays import known_values
from ..foundation.shapes import check_key
from ..layers import learned as pieces_of
from ..layers.multi_head import multi_head, multi_head_weights
from ..layers.norms import QKNorm, as_qk_norm
from ..layers.options import check_inputs, check_options
from ..layers.parameters import Shape, Sizes, initialize, parameter_shapes
from ..masks.base import restricted
from ..ops.attention.checks import check_pieces
from ..ops.attention.dropout import Dropout
from ..parallel import Heads


class _Group(nn.Module):
    """The parameters of one projection or norm."""

    shapes: dict[str, Shape]
    inits: dict[str, Callable[..., Any]]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return {
            name: self.param(name, functools.partial(initialize, self.inits[name]), shape, self.param_dtype)
            for name, shape in self.shapes.items()
        }


def _constant(leaf: Any) -> Any:
    values = known_values(leaf)
    return leaf if values is None else values


class MultiHeadAttention(nn.Module):
    """Multi-head attention with every choice of pieces, in linen.

    The equation and the meaning of the arguments are those of `jattn.layers.multi_head`, and the attributes those of
    `jattn.nnx.MultiHeadAttention`; with the same weights the two are equal. Parameters are named and shaped as in
    `flax.linen.MultiHeadAttention` (`query/kernel [features, heads, head_dim]`, ..., `out/kernel`), so that a tree
    of its weights fits; sizes of inputs are read from them.

    Attributes:
        q_heads: query heads.
        kv_heads: key and value heads, by default `q_heads`.
        head_dim: by default the features of the inputs divided by `q_heads`.
        out_features: by default the features of the inputs.
        use_bias: whether projections add a bias; or the names of those that do, `("query", "value", "out")` for
            Whisper, whose keys have none.
        qk_norm: whether query and key are normed, each head by its root mean square, with learned scales; or a
            `jattn.layers.QKNorm` that says how: over all heads, by mean and variance, with 1 + w.
        mask, similarity, scores, normalizer, implementation: as of `jattn.attention`.
        rotary: True, or a function of `x [..., length, heads, dim]` and positions.
        learned: the names of pieces whose floating-point arrays are parameters: `"normalizer"` trains a sink.
        dropout_rate: of the weights; needs the rng `"dropout"`, unless deterministic.
        deterministic: whether to leave dropout out; here or at the call.
        dtype: to compute in; by default the one that inputs and parameters promote to.
        param_dtype: of the parameters.
        kernel_init, out_kernel_init, bias_init: as in Flax; they see a kernel as a matrix. The output projection's
            is by default `kernel_init`.
        parallel: `jattn.parallel.Heads(...)` to split the heads over devices.

    Raises:
        ValueError: at the call; as `jattn.layers.multi_head`.

    >>> import jax, jattn.linen
    >>> layer = jattn.linen.MultiHeadAttention(8, kv_heads=2, rotary=True, mask=jattn.masks.Causal())
    >>> x = jax.numpy.ones((2, 10, 64))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (2, 10, 64)
    """

    q_heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    out_features: int | None = None
    use_bias: bool | Collection[str] = True
    qk_norm: bool | QKNorm = False
    mask: Any = None
    similarity: Any = None
    scores: Any = ()
    normalizer: Any = None
    rotary: Callable[..., jax.Array] | bool | None = None
    implementation: Any = None
    learned: Collection[str] = ()
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    out_kernel_init: Callable[..., Any] | None = None
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    parallel: Heads | None = None

    def __post_init__(self) -> None:
        check_options(
            rotary=self.rotary,
            dropout_rate=self.dropout_rate,
            implementation=self.implementation,
            parallel=self.parallel,
            dtypes={"dtype": self.dtype, "param_dtype": self.param_dtype},
            initializers={
                "kernel_init": self.kernel_init,
                "out_kernel_init": self.out_kernel_init,
                "bias_init": self.bias_init,
            },
            use_bias=self.use_bias,
            qk_norm=self.qk_norm,
        )
        check_pieces(self.mask, self.similarity, self.scores, self.normalizer, None)
        for name in pieces_of.LEARNABLE:
            # Attributes are constants; `nn.jit` tells modules apart by them, which it cannot with arrays of JAX.
            object.__setattr__(self, name, jax.tree.map(_constant, getattr(self, name)))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        key_inputs: jax.Array | None = None,
        value_inputs: jax.Array | None = None,
        *,
        mask: Any = None,
        positions: Any = None,
        key_positions: Any = None,
        deterministic: bool | None = None,
        dropout_rng: jax.Array | None = None,
        weights: bool = False,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
    ) -> jax.Array:
        """Attend.

        Args:
            inputs: `[..., q_len, features]`.
            key_inputs: `[..., kv_len, features]`; by default `inputs`.
            value_inputs: likewise; by default `key_inputs`.
            mask: restricts the module's own, as `&` does. To attend with another in its place: `layer.clone(mask=...)`.
            positions, key_positions: as of `jattn.layers.multi_head`.
            deterministic: whether to leave dropout out, over the attribute.
            dropout_rng: a random key, instead of one made from the rng `"dropout"`.
            weights: return the weights `[..., heads, queries, kv_len]`, before dropout, and not the output.
            heads, queries: of the weights, the indices of those wanted.
        """
        check_inputs(inputs=inputs, key_inputs=key_inputs, value_inputs=value_inputs)
        key_source = inputs if key_inputs is None else key_inputs
        if value_inputs is not None and value_inputs.shape[-1] != key_source.shape[-1]:
            raise ValueError(
                f"`value_inputs` must have the features of `key_inputs`; got {value_inputs.shape} and "
                f"{key_source.shape}."
            )
        sizes = Sizes(
            self.q_heads, inputs.shape[-1], self.kv_heads, self.head_dim, key_source.shape[-1], self.out_features
        )
        qk_norm = as_qk_norm(self.qk_norm)
        inits = {"kernel": self.kernel_init, "bias": self.bias_init}
        shapes = parameter_shapes(sizes, use_bias=self.use_bias, qk_norm=self.qk_norm)
        out_inits = {**inits, "kernel": self.out_kernel_init or self.kernel_init}
        norm_inits = {} if qk_norm is None else qk_norm.initializers()
        own = {"out": out_inits, "query_norm": norm_inits, "key_norm": norm_inits}
        parameters = {
            group: _Group(members, own.get(group, inits), self.param_dtype, name=group)()
            for group, members in shapes.items()
        }
        arguments = dict(
            **self._pieces(mask),
            rotary=self.rotary,
            positions=positions,
            key_positions=key_positions,
            qk_norm=qk_norm,
            dtype=self.dtype,
        )
        if weights:
            return multi_head_weights(parameters, inputs, key_inputs, **arguments, heads=heads, queries=queries)
        return multi_head(
            parameters,
            inputs,
            key_inputs,
            value_inputs,
            **arguments,
            dropout=self._dropout(deterministic, dropout_rng),
            implementation=self.implementation,
            parallel=self.parallel,
        )

    def _pieces(self, mask: Any) -> dict[str, Any]:
        """The pieces, with the learned arrays from the parameters."""
        own, similarity, scores, normalizer, _ = check_pieces(
            self.mask, self.similarity, self.scores, self.normalizer, None
        )
        pieces = {"mask": own, "similarity": similarity, "scores": scores, "normalizer": normalizer}
        for name in pieces_of.check_learned(self.learned, pieces):
            first = pieces_of.split(pieces[name])
            pieces[name] = pieces_of.join(pieces[name], self.param(name, lambda _, first=first: first))
        return {**pieces, "mask": restricted(pieces["mask"], mask)}

    def _dropout(self, deterministic: bool | None, key: jax.Array | None) -> Dropout | None:
        if self.dropout_rate == 0:
            return None
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return None
        if key is not None:
            check_key("dropout_rng", key)
        return Dropout(self.dropout_rate, self.make_rng("dropout") if key is None else key)
