"""Multi-head attention as a layer: sizes, pieces and the parameters they need."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.shapes import check_shapes
from ..foundation.sharding import mesh_context
from ..masks.base import restricted
from ..ops.attention.call import check_pieces
from ..ops.attention.dropout import Dropout
from ..parallel import Heads
from . import learned as pieces_of
from .caches import Contiguous, Spec
from .decoding import (
    State,
    attend_new,
    check_cache,
    check_decoding,
    check_hides_the_future,
    check_pieces_of_tokens,
    remember,
    spec_of,
)
from .layer import Initializer, Layer, Parameter, lecun_normal, zeros
from .multi_head import multi_head, multi_head_weights
from .norms import QKNorm, as_qk_norm
from .options import check_options
from .parameters import AXES, Sizes, biased, parameter_shapes
from .splitting import Splitting


@dataclasses.dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with every choice of pieces.

    The equation is in `jattn.layers.multi_head`. `jattn.nnx.MultiHeadAttention` and `jattn.linen.MultiHeadAttention`
    hold the parameters of one. Names and shapes of parameters match Flax's own layer:
    `query.kernel [features, heads, head_dim]`, ..., `out.kernel [heads, head_dim, features]`.

    Args:
        in_features: features of the inputs.
        q_heads: number of query heads.
        kv_heads: number of key and value heads, by default `q_heads`; must divide `q_heads`.
        head_dim: features of a head, by default `in_features / q_heads`; any size.
        in_kv_features: features of the inputs that keys and values are computed from, by default `in_features`.
        out_features: features of the output, by default `in_features`.
        use_bias: whether the projections add a bias, or the names of those that do, such as
            `("query", "value", "out")` for Whisper, whose keys have none.
        qk_norm: whether queries and keys are normalized, each head by its root mean square, with learned scales; or a
            `QKNorm` for other norms.
        mask, similarity, scores, normalizer, implementation: as in `jattn.attention`.
        rotary: True, or a function of `x [..., length, heads, dim]` and positions, such as
            `functools.partial(jattn.positions.rotary, base=500000.0)`.
        learned: the names of pieces whose floating-point arrays are parameters: `"normalizer"` trains a sink,
            `"scores"` a bias table.
        dropout_rate: the dropout rate of the weights, in calls that pass a `dropout_key`.
        dtype: the dtype to compute in; by default the promoted dtype of inputs and parameters.
        kernel_init, out_kernel_init, bias_init: initializers of the projections. As in Flax, they see a kernel as a
            matrix. `out_kernel_init` is by default `kernel_init`.
        parallel: `jattn.parallel.Heads(...)` to split the heads across devices.
        cache: the cache that `initial_state` makes unless it is told otherwise, such as `caches.Contiguous(1024)`.

    Raises:
        ValueError: sizes do not match; a piece is of the wrong kind; at the call, as in `multi_head`.

    >>> import jax, jattn
    >>> layer = MultiHeadAttention(64, 8, kv_heads=2, rotary=True, mask=jattn.masks.SlidingWindow(299, 0))
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 10, 64))).shape
    (2, 10, 64)
    """

    in_features: int
    q_heads: int
    _: dataclasses.KW_ONLY
    kv_heads: int | None = None
    head_dim: int | None = None
    in_kv_features: int | None = None
    out_features: int | None = None
    use_bias: bool | Collection[str] = True
    qk_norm: bool | QKNorm | None = False
    mask: Any = None
    similarity: Any = None
    scores: Any = ()
    normalizer: Any = None
    rotary: Callable[..., jax.Array] | bool | None = None
    implementation: Any = None
    learned: Collection[str] = ()
    dropout_rate: float = 0.0
    dtype: Any = None
    kernel_init: Initializer = lecun_normal
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = zeros
    parallel: Heads | None = None
    cache: Spec | None = None

    def __post_init__(self):
        check_options(
            rotary=self.rotary,
            dropout_rate=self.dropout_rate,
            implementation=self.implementation,
            parallel=self.parallel,
            dtypes={"dtype": self.dtype},
            initializers={
                "kernel_init": self.kernel_init,
                "out_kernel_init": self.out_kernel_init or self.kernel_init,
                "bias_init": self.bias_init,
            },
            use_bias=self.use_bias,
            qk_norm=self.qk_norm,
        )
        check_cache(self.cache)
        sizes = Sizes(
            self.in_features, self.q_heads, self.kv_heads, self.head_dim, self.in_kv_features, self.out_features
        )
        checked = check_pieces(self.mask, self.similarity, self.scores, self.normalizer, None)
        pieces: dict[str, Any] = dict(zip(pieces_of.PIECES, checked, strict=False))
        fields = {
            **dataclasses.asdict(sizes),
            **pieces,
            "use_bias": biased(self.use_bias),
            "qk_norm": as_qk_norm(self.qk_norm),
            "learned": pieces_of.check_learned(self.learned, pieces),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `out`; with norms, `query_norm` and `key_norm`; and the learned pieces."""
        sizes = Sizes(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Sizes)})
        kernels = {"kernel": self.kernel_init, "bias": self.bias_init}
        inits: dict[str, Any] = dict.fromkeys(("query", "key", "value"), kernels)
        inits["out"] = {**kernels, "kernel": self.out_kernel_init or self.kernel_init}
        if isinstance(self.qk_norm, QKNorm):
            inits |= dict.fromkeys(("query_norm", "key_norm"), self.qk_norm.initializers())
        shapes = parameter_shapes(sizes, use_bias=self.use_bias, qk_norm=self.qk_norm)
        projections = {
            group: {name: Parameter(one.shape, inits[group][name], one.inputs) for name, one in members.items()}
            for group, members in shapes.items()
        }
        return projections | {name: pieces_of.declare(getattr(self, name)) for name in self.learned}

    def __call__(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        key_inputs: jax.Array | None = None,
        value_inputs: jax.Array | None = None,
        *,
        mask: Any = None,
        positions: Any = None,
        key_positions: Any = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Attend from `inputs` to `key_inputs`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., q_len, features]`.
            key_inputs: `[..., kv_len, features]`; by default `inputs` (self-attention).
            value_inputs: `[..., kv_len, features]`; by default `key_inputs`.
            mask: combined with the layer's own mask by `&`.
            positions, key_positions: as in `multi_head`.
            dropout_key: a random key; without one, no weights are dropped.

        Returns:
            `[..., q_len, out_features]`.
        """
        self._check_key_inputs(key_inputs)
        with mesh_context(inputs, self._mesh):
            return multi_head(
                _projections(parameters),
                inputs,
                key_inputs,
                value_inputs,
                **self._pieces(parameters, mask),
                **self._projecting(),
                positions=positions,
                key_positions=key_positions,
                dropout=self._dropout(dropout_key),
                implementation=self.implementation,
                parallel=self.parallel,
            )

    def attention_weights(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        key_inputs: jax.Array | None = None,
        *,
        mask: Any = None,
        positions: Any = None,
        key_positions: Any = None,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
    ) -> jax.Array:
        """The attention weights `[..., heads, queries, kv_len]` of the call, before dropout. They are recomputed.

        Arguments as in `__call__`; `heads` and `queries` select a few, as in `jattn.attention_weights`.
        """
        self._check_key_inputs(key_inputs)
        return multi_head_weights(
            _projections(parameters),
            inputs,
            key_inputs,
            **self._pieces(parameters, mask),
            **self._projecting(),
            positions=positions,
            key_positions=key_positions,
            heads=heads,
            queries=queries,
        )

    def initial_state(
        self,
        parameters: Mapping[str, Any],
        batch: tuple[int, ...] | None = None,
        *,
        length: int | None = None,
        cache: Spec | None = None,
        dtype: Any = None,
        key_inputs: jax.Array | None = None,
        value_inputs: jax.Array | None = None,
        key_valid: Any = None,
    ) -> State:
        """The state that `prefill` and `step` start from: an empty cache or, for cross-attention, the projected keys.

        Self-attention can only generate with a mask that hides the future, such as `Causal()`.

        Args:
            parameters: the layer's parameters. Only their dtype is used, unless `key_inputs` are given.
            batch: the batch axes of the inputs to come; by default none, or those of `key_inputs`.
            length: the capacity in tokens per example; short for `cache=caches.Contiguous(length)`.
            cache: another kind of cache instead of `length`, such as `caches.Rolling(window)`; by default the layer's.
            dtype: the dtype of the cached keys and values, by default the one that the layer computes in.
            key_inputs: `[..., kv_len, features]`, for cross-attention: keys and values are computed here, once.
            value_inputs: `[..., kv_len, features]`; by default `key_inputs`.
            key_valid: booleans `[..., kv_len]` or `[kv_len]`: which of the `key_inputs` are not padding.

        Raises:
            ValueError: not exactly one of `length`, `cache` and `key_inputs` is given; sizes or dtypes do not match; a
                piece of the layer has a number for each query of one sequence.

        >>> import jax
        >>> layer = MultiHeadAttention(64, 8, kv_heads=2)
        >>> state = layer.initial_state(layer.init(jax.random.key(0)), (3,), length=100)
        >>> state.keys.shape
        (3, 100, 2, 8)
        """
        check_pieces_of_tokens({name: getattr(self, name) for name in pieces_of.PIECES})
        if dtype is None:
            dtype = jnp.result_type(*jax.tree.leaves(parameters) or [jnp.float32]) if self.dtype is None else self.dtype
        sizes: dict[str, Any] = {"kv_heads": self.kv_heads, "k_dim": self.head_dim, "dtype": dtype}
        if key_inputs is None:
            if value_inputs is not None or key_valid is not None:
                raise ValueError("`value_inputs` and `key_valid` need `key_inputs`.")
            self._check_key_inputs(key_inputs)
            made = spec_of(length, cache, self.cache).create(() if batch is None else batch, **sizes)
            return Splitting(self.parallel, made, self.q_heads).cache(made)
        if length is not None or cache is not None:
            raise ValueError("`length` and `cache` are for self-attention; `key_inputs` have their own length.")
        value_inputs = key_inputs if value_inputs is None else value_inputs
        found = check_shapes(
            {"in_kv_features": int(self.in_kv_features or 0)},
            key_inputs=(key_inputs, "... kv_len in_kv_features"),
            value_inputs=(value_inputs, "... kv_len in_kv_features"),
        )
        if batch is not None and tuple(batch) != tuple(key_inputs.shape[:-2]):
            raise ValueError(f"`batch` must be that of `key_inputs`, {key_inputs.shape[:-2]}; got {batch}.")
        self.check_parameters(parameters)  # here they are used for more than their dtype
        empty = Contiguous(max(found["kv_len"], 1)).create(tuple(key_inputs.shape[:-2]), **sizes)
        with mesh_context(key_inputs, self._mesh):
            return remember(
                _projections(parameters),
                empty,
                key_inputs,
                value_inputs,
                valid=key_valid,
                parallel=self.parallel,
                **self._projecting(),
            )

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: Any = None,
        *,
        mask: Any = None,
        valid: Any = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """The next tokens of each example, all at once: their outputs, and the state after them.

        Chunks of any size, and single steps, give the outputs of a call on the whole sequence, provided that the mask
        hides the future, such as `Causal()`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., new, in_features]`.
            state: returned by `initial_state`, `prefill` or `step`.
            mask: combined with the layer's own mask by `&`. It sees positions in the whole sequence.
            valid: booleans `[..., new]` or `[new]`: which of the inputs are tokens, by default all. The others are
                padding, on either side: they are not cached, they do not advance the position, and their outputs are
                meaningless.
            dropout_key: as in `__call__`. With the same key, every chunk drops the weights that the whole call drops.

        Returns:
            `[..., new, out_features]`, and the state. If the tokens of an example exceed the capacity of its cache, its
            outputs are NaN.

        Raises:
            ValueError: self-attention without a mask; the state does not match these inputs; there are more tokens
                than the cache has room for, where lengths are known (outside `jax.jit`); a piece holds arrays over keys
                that do not have the cache's length.
        """
        check_shapes({"in_features": self.in_features}, inputs=(inputs, "... new in_features"))
        check_decoding(state, inputs, int(self.kv_heads or 0), int(self.head_dim or 0), self._cross)
        pieces = self._pieces(parameters, mask)
        check_hides_the_future(pieces["mask"], state)
        with mesh_context(inputs, self._mesh):
            return attend_new(
                _projections(parameters),
                inputs,
                state,
                valid=valid,
                pieces=pieces | {"dropout": self._dropout(dropout_key), "implementation": self.implementation},
                parallel=self.parallel,
                **self._projecting(),
            )

    def step(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: Any,
        *,
        mask: Any = None,
        valid: Any = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """The next token of each example, `[..., in_features]` -> `[..., out_features]`, and the state after it.

        Arguments and errors as in `prefill`; `valid [...]` says which examples advance.

        >>> import jax, jattn
        >>> layer = MultiHeadAttention(64, 8, rotary=True, mask=jattn.masks.Causal())
        >>> parameters, x = layer.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 10, 64))
        >>> state = layer.initial_state(parameters, (3,), length=16)
        >>> out, state = jax.jit(layer.prefill)(parameters, x[:, :9], state)
        >>> last, state = jax.jit(layer.step)(parameters, x[:, 9], state)
        >>> bool(jax.numpy.allclose(last, jax.jit(layer)(parameters, x)[:, 9], atol=1e-5))
        True
        """
        check_shapes({"in_features": self.in_features}, inputs=(inputs, "... in_features"))
        valid = valid if valid is None else jnp.asarray(valid)[..., None]
        out, state = self.prefill(
            parameters, inputs[..., None, :], state, mask=mask, valid=valid, dropout_key=dropout_key
        )
        return out[..., 0, :], state

    @property
    def _cross(self) -> bool:
        """Whether keys must be computed from other inputs than queries."""
        return self.in_kv_features != self.in_features

    @property
    def _mesh(self) -> Any:
        return None if self.parallel is None else self.parallel.mesh

    def _check_key_inputs(self, key_inputs: Any) -> None:
        if self._cross and key_inputs is None:
            raise ValueError(
                "`key_inputs` must be given: keys are computed from other inputs, because `in_kv_features` "
                f"{self.in_kv_features} differs from `in_features` {self.in_features}."
            )

    def _pieces(self, parameters: Mapping[str, Any], mask: Any) -> dict[str, Any]:
        """The pieces, with learned arrays taken from the parameters, and the mask restricted by that of the call."""
        pieces = {
            name: pieces_of.join(getattr(self, name), parameters[name]) if name in self.learned else getattr(self, name)
            for name in pieces_of.PIECES
        }
        return pieces | {"mask": restricted(pieces["mask"], mask)}

    def _projecting(self) -> dict[str, Any]:
        return {"rotary": self.rotary, "qk_norm": self.qk_norm, "dtype": self.dtype}

    def _dropout(self, key: jax.Array | None) -> Dropout | None:
        return None if key is None or self.dropout_rate == 0 else Dropout(self.dropout_rate, key)


def _projections(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `multi_head` takes: all except those of the learned pieces."""
    return {name: group for name, group in parameters.items() if name in AXES}
