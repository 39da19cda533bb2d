"""Multi-head attention as an nnx module, with typed arguments and random streams for dropout."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_flags, check_key
from ..foundation.arrays import describe, dtype_of
from ..layers import attention as data
from ..layers.caches import Spec
from ..layers.decoding import State
from ..layers.learned import PIECES
from ..layers.norms import QKNorm
from ..parallel import Heads
from .layer import Layer, arrays_of, hold


class MultiHeadAttention(Layer):
    """Multi-head attention with every choice of pieces, as an nnx module.

    Holds the parameters of a `jattn.layers.MultiHeadAttention` and takes its arguments. Names and shapes of parameters
    match `flax.nnx.MultiHeadAttention` (`query.kernel [features, heads, head_dim]`, ..., `out.kernel`), so a checkpoint
    of its parameters loads, and with the same weights both compute the same where Flax has the option. Note the order
    of the arguments: features, then heads; Flax takes heads first.

    Args:
        in_features: features of the inputs.
        q_heads: number of query heads.
        kv_heads, head_dim, in_kv_features, out_features: other sizes, as in `jattn.layers.MultiHeadAttention`.
        use_bias, qk_norm, rotary, dtype, kernel_init, out_kernel_init, bias_init, parallel, cache: likewise.
        mask, similarity, scores, normalizer, implementation: as in `jattn.attention`.
        learned: the names of pieces whose floating-point arrays are `nnx.Param`s: `"normalizer"` trains a sink,
            `"scores"` a bias table. Other JAX arrays in pieces are `PieceArray`s: state that is not trained. NumPy
            arrays are static, so their values are known at trace time.
        dropout_rate: dropout rate of the weights.
        deterministic: whether to disable dropout; `train()`, `eval()` and `nnx.view` set it.
        param_dtype: dtype of the parameters.
        rngs: random streams for the parameters and for dropout.

    Raises:
        ValueError: sizes do not match; a piece is of the wrong kind; at the call, as in `jattn.layers.multi_head`.

    >>> import jax, jattn.nnx
    >>> from flax import nnx
    >>> layer = jattn.nnx.MultiHeadAttention(
    ...     64, 8, kv_heads=2, rotary=True, qk_norm=True, mask=lambda q, k: (k <= q) & (q - k < 300), rngs=nnx.Rngs(0)
    ... )
    >>> layer(jax.numpy.ones((2, 10, 64))).shape
    (2, 10, 64)
    """

    query: Any
    key: Any
    value: Any
    out: Any
    mask: Any  # what is learned of them
    similarity: Any
    scores: Any
    normalizer: Any

    def __init__(
        self,
        in_features: int,
        q_heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        in_kv_features: int | None = None,
        out_features: int | None = None,
        use_bias: bool | Collection[str] = True,
        qk_norm: bool | QKNorm = False,
        mask: Any = None,
        similarity: Any = None,
        scores: Any = (),
        normalizer: Any = None,
        rotary: Callable[..., jax.Array] | bool | None = None,
        implementation: Any = None,
        learned: Collection[str] = (),
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Callable[..., Any] = nnx.initializers.lecun_normal(),
        out_kernel_init: Callable[..., Any] | None = None,
        bias_init: Callable[..., Any] = nnx.initializers.zeros_init(),
        parallel: Heads | None = None,
        cache: Spec | None = None,
        rngs: nnx.Rngs,
    ):
        check_flags(deterministic=deterministic)
        layer = data.MultiHeadAttention(
            in_features,
            q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            in_kv_features=in_kv_features,
            out_features=out_features,
            use_bias=use_bias,
            qk_norm=qk_norm,
            mask=mask,
            similarity=similarity,
            scores=scores,
            normalizer=normalizer,
            rotary=rotary,
            implementation=implementation,
            learned=learned,
            dropout_rate=dropout_rate,
            dtype=dtype,
            kernel_init=kernel_init,
            out_kernel_init=out_kernel_init,
            bias_init=bias_init,
            parallel=parallel,
            cache=cache,
        )
        super().__init__(layer, param_dtype=param_dtype, rngs=rngs)
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.rngs = nnx.data(rngs.dropout.fork() if dropout_rate > 0 else None)

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
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Attend from `inputs` to `key_inputs`.

        Args:
            inputs: `[..., q_len, features]`.
            key_inputs: `[..., kv_len, features]`; by default `inputs` (self-attention).
            value_inputs: `[..., kv_len, features]`; by default `key_inputs`.
            mask: combined with the module's own mask by `&`. To replace the module's own:
                `layer.with_pieces(mask=...)`.
            positions, key_positions: as in `jattn.layers.multi_head`.
            deterministic: whether to disable dropout; overrides the module's own setting.
            rngs: randomness for dropout instead of the module's own: `nnx.Rngs`, one of its streams, or a random key.
        """
        return self.layer(
            arrays_of(self),
            inputs,
            key_inputs,
            value_inputs,
            mask=mask,
            positions=positions,
            key_positions=key_positions,
            dropout_key=_dropout_key(self, deterministic, rngs),
        )

    def initial_state(
        self,
        batch: tuple[int, ...] | None = None,
        *,
        length: int | None = None,
        cache: Spec | None = None,
        dtype: Any = None,
        key_inputs: jax.Array | None = None,
        value_inputs: jax.Array | None = None,
        key_valid: Any = None,
    ) -> State:
        """The state that `prefill` and `step` start from, as in `jattn.layers.MultiHeadAttention.initial_state`.

        Self-attention can only generate with a mask that hides the future, such as `Causal()`.

        Args:
            batch: the batch axes of the inputs to come.
            length: the capacity in tokens per example.
            cache: another cache of `jattn.layers.caches`, instead of `length`.
            dtype: the dtype of the cached keys and values.
            key_inputs, value_inputs, key_valid: for cross-attention, whose keys and values are computed here, once.
        """
        return self.layer.initial_state(
            arrays_of(self),
            batch,
            length=length,
            cache=cache,
            dtype=dtype,
            key_inputs=key_inputs,
            value_inputs=value_inputs,
            key_valid=key_valid,
        )

    def prefill(
        self,
        inputs: jax.Array,
        state: Any = None,
        *,
        mask: Any = None,
        valid: Any = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """The next tokens of each example at once, as in `jattn.layers.MultiHeadAttention.prefill`.

        Self-attention must have a mask that hides the future, such as `Causal()`, of the module or of this call.

        Args:
            inputs: `[..., new, features]`.
            state: returned by `initial_state`, `prefill` or `step`.
            mask: combined with the module's own mask by `&`.
            valid: booleans `[..., new]` or `[new]`, False for padding.
            deterministic, rngs: as in `__call__`.
        """
        key = _dropout_key(self, deterministic, rngs)
        return self.layer.prefill(arrays_of(self), inputs, state, mask=mask, valid=valid, dropout_key=key)

    def step(
        self,
        inputs: jax.Array,
        state: Any,
        *,
        mask: Any = None,
        valid: Any = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """The next token of each example, `[..., features]` -> `[..., features]`, and the state after it.

        Arguments as in `prefill`; `valid [...]` says which examples advance.
        """
        key = _dropout_key(self, deterministic, rngs)
        return self.layer.step(arrays_of(self), inputs, state, mask=mask, valid=valid, dropout_key=key)

    def attention_weights(
        self,
        inputs: jax.Array,
        key_inputs: jax.Array | None = None,
        *,
        mask: Any = None,
        positions: Any = None,
        key_positions: Any = None,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
    ) -> jax.Array:
        """The weights `[..., heads, queries, kv_len]`, before dropout; `heads` and `queries` select a few."""
        return self.layer.attention_weights(
            arrays_of(self),
            inputs,
            key_inputs,
            mask=mask,
            positions=positions,
            key_positions=key_positions,
            heads=heads,
            queries=queries,
        )

    def with_pieces(self, **pieces: Any) -> "MultiHeadAttention":
        """The same layer with other pieces, sharing its parameters; `mask=None` removes the mask.

        Args:
            **pieces: `mask`, `similarity`, `scores`, `normalizer`, instead of the module's own. Their arrays are not
                trained.

        Raises:
            ValueError: a name is unknown; a value is not such a piece.

        >>> import jax, jattn.nnx
        >>> from flax import nnx
        >>> layer = jattn.nnx.MultiHeadAttention(64, 8, mask=jattn.masks.Causal(), rngs=nnx.Rngs(0))
        >>> both_ways = layer.with_pieces(mask=None)
        >>> both_ways.query.kernel is layer.query.kernel
        True
        """
        unknown = pieces.keys() - set(PIECES)
        if unknown:
            raise ValueError(f"pieces are {', '.join(PIECES)}; got {sorted(unknown)}.")
        own = self.layer
        other = nnx.view(self, raise_if_not_found=False)
        kept = tuple(name for name in own.learned if name not in pieces)
        for name in set(own.learned) - set(kept):
            delattr(other, name)
        other.names = tuple(name for name in self.names if name not in pieces)
        hold(other, dataclasses.replace(own, **pieces, learned=kept))
        return other

    def set_view(self, deterministic: bool | None = None) -> None:
        """Called by `nnx.view`.

        Args:
            deterministic: whether to disable dropout.
        """
        if deterministic is not None:
            check_flags(deterministic=deterministic)
            self.deterministic = deterministic


def _dropout_key(module: MultiHeadAttention, deterministic: bool | None, rngs: Any) -> Any:
    """A random key if weights are to be dropped, else None."""
    if deterministic is not None:
        check_flags(deterministic=deterministic)
    if module.dropout_rate == 0 or (module.deterministic if deterministic is None else deterministic):
        return None
    return _next_key(module.rngs if rngs is None else rngs)


def _next_key(rngs: Any) -> Any:
    """The next key of a stream, or the key itself."""
    if isinstance(rngs, nnx.Rngs):
        if "dropout" not in rngs and "default" not in rngs:
            raise ValueError(f"`rngs` must have a stream for dropout, such as `nnx.Rngs(dropout=0)`; got {[*rngs]}.")
        rngs = rngs.dropout
    if isinstance(rngs, nnx.RngStream):
        return rngs()
    if dtype_of(rngs) is None:
        raise ValueError(f"`rngs` must be `nnx.Rngs(dropout=...)`, a stream or a random key; got {describe(rngs)}.")
    check_key("rngs", rngs)
    return rngs
