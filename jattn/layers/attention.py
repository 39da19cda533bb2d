"""Multi-head attention as a layer: sizes and pieces, and the parameters that they need."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..foundation.shapes import check_shapes
from ..masks.base import restricted
from ..ops.attention.checks import check_pieces
from ..ops.attention.dropout import Dropout
from ..parallel import Heads
from . import learned as pieces_of
from .caches import Contiguous, Spec
from .decoding import State, attend_new, check_decoding, remember, spec_of
from .layer import Initializer, Layer, Parameter, lecun_normal, zeros
from .multi_head import multi_head, multi_head_weights
from .norms import QKNorm, as_qk_norm
from .options import check_options
from .parameters import AXES, Sizes, biased, parameter_shapes


@dataclasses.dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with every choice of pieces.

    The equation is that of `jattn.layers.multi_head`. `jattn.nnx.MultiHeadAttention` and its linen namesake hold the
    parameters of one. These are named and shaped as in Flax's own layer: `query.kernel [features, heads, head_dim]`,
    ..., `out.kernel`.

    Args:
        in_features: features of the inputs.
        q_heads: query heads.
        kv_heads: key and value heads, by default `q_heads`; `q_heads` must be a multiple of it.
        head_dim: by default `in_features / q_heads`; any size.
        in_kv_features: features of the inputs that keys and values are made of, by default `in_features`.
        out_features: by default `in_features`.
        use_bias: whether projections add a bias; or the names of those that do, `("query", "value", "out")` for
            Whisper, whose keys have none.
        qk_norm: whether queries and keys are normed, each head by its root mean square, with learned scales; or a
            `QKNorm` that says how.
        mask, similarity, scores, normalizer, implementation: as of `jattn.attention`.
        rotary: True, or a function of `x [..., length, heads, dim]` and positions, such as
            `functools.partial(jattn.positions.rotary, base=500000.0)`.
        learned: the names of pieces whose floating-point arrays are parameters: `"normalizer"` trains a sink,
            `"scores"` a bias table.
        dropout_rate: of the weights, in calls that give a `dropout_key`.
        dtype: to compute in; by default the one that inputs and parameters promote to.
        kernel_init, out_kernel_init, bias_init: first values of the projections, as in Flax: they see a kernel as a
            matrix. `out_kernel_init` is by default `kernel_init`.
        parallel: `jattn.parallel.Heads(...)` to split the heads over devices.

    Raises:
        ValueError: sizes that do not fit; a wrong piece; at the call, as `multi_head`.

    >>> import jax, jattn
    >>> layer = MultiHeadAttention(64, 8, kv_heads=2, rotary=True, mask=jattn.masks.SlidingWindow(299, 0))
    >>> parameters = layer.init(jax.random.key(0))
    >>> layer(parameters, jax.numpy.ones((2, 10, 64))).shape
    (2, 10, 64)
    """

    own_axes: ClassVar = {"prefill": "length features", "step": "features"}

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

    def __post_init__(self):
        check_options(
            rotary=self.rotary,
            dropout_rate=self.dropout_rate,
            implementation=self.implementation,
            parallel=self.parallel,
            dtypes={"dtype": self.dtype},
            initializers={
                "kernel_init": self.kernel_init,
                "out_kernel_init": self.out_kernel_init,
                "bias_init": self.bias_init,
            },
            use_bias=self.use_bias,
            qk_norm=self.qk_norm,
        )
        sizes = Sizes(
            self.in_features, self.q_heads, self.kv_heads, self.head_dim, self.in_kv_features, self.out_features
        )
        checked = check_pieces(self.mask, self.similarity, self.scores, self.normalizer, None)
        pieces: dict[str, Any] = dict(zip(pieces_of.PIECES, checked, strict=False))
        settled = {
            **dataclasses.asdict(sizes),
            **pieces,
            "use_bias": biased(self.use_bias),
            "qk_norm": as_qk_norm(self.qk_norm),
            "learned": pieces_of.check_learned(self.learned, pieces),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `out`, `query_norm` and `key_norm` if there are norms, and the learned pieces."""
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
        """Attend.

        Args:
            parameters: of the layer.
            inputs: `[..., q_len, features]`.
            key_inputs: `[..., kv_len, features]`; by default `inputs`.
            value_inputs: likewise; by default `key_inputs`.
            mask: restricts the layer's own, as `&` does.
            positions, key_positions: as of `multi_head`.
            dropout_key: a random key, with which `dropout_rate` of the weights are dropped; by default none are.

        Returns:
            `[..., q_len, out_features]`.
        """
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
        """The weights of the call, before dropout: `[..., heads, queries, kv_len]`, recomputed.

        Arguments as of the call; `heads` and `queries` ask for a few, as of `jattn.attention_weights`.
        """
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
        """What `prefill` and `step` go on from: a cache without tokens, or the keys and values of other inputs.

        Args:
            parameters: of the layer; looked at for their dtype, and where there are `key_inputs`.
            batch: the batch axes of the inputs to come; by default none, or those of `key_inputs`.
            length: places for so many tokens of each example, `caches.Contiguous(length)`.
            cache: another cache, such as `caches.Rolling(window)`, in place of `length`.
            dtype: of the keys and values that are kept, by default the one that the layer computes in.
            key_inputs: `[..., kv_len, features]`: cross-attention, whose keys and values are made here, once.
            value_inputs: likewise; by default `key_inputs`.
            key_valid: booleans `[..., kv_len]` or `[kv_len]`: which of the `key_inputs` are not padding.

        Raises:
            ValueError: neither, or both, of `length` and `cache`, or one of them with `key_inputs`; sizes or a dtype
                that do not fit.

        >>> import jax
        >>> layer = MultiHeadAttention(64, 8, kv_heads=2)
        >>> state = layer.initial_state(layer.init(jax.random.key(0)), (3,), length=100)
        >>> state.keys.shape
        (3, 100, 2, 8)
        """
        if dtype is None:
            dtype = jnp.result_type(*jax.tree.leaves(parameters) or [jnp.float32]) if self.dtype is None else self.dtype
        sizes: dict[str, Any] = {"kv_heads": self.kv_heads, "k_dim": self.head_dim, "dtype": dtype}
        if key_inputs is None:
            if value_inputs is not None or key_valid is not None:
                raise ValueError("`value_inputs` and `key_valid` need `key_inputs`.")
            if self._cross:
                raise ValueError(
                    "`key_inputs` must be given: keys are made of other inputs, as `in_kv_features` "
                    f"{self.in_kv_features} differs from `in_features` {self.in_features}."
                )
            return spec_of(length, cache).create(() if batch is None else batch, **sizes)
        if length is not None or cache is not None:
            raise ValueError("`length` and `cache` are for self-attention; `key_inputs` bring their own length.")
        value_inputs = key_inputs if value_inputs is None else value_inputs
        found = check_shapes(
            {"in_kv_features": int(self.in_kv_features or 0)},
            key_inputs=(key_inputs, "... kv_len in_kv_features"),
            value_inputs=(value_inputs, "... kv_len in_kv_features"),
        )
        if batch is not None and tuple(batch) != tuple(key_inputs.shape[:-2]):
            raise ValueError(f"`batch` must be that of `key_inputs`, {key_inputs.shape[:-2]}; got {batch}.")
        empty = Contiguous(max(found["kv_len"], 1)).create(tuple(key_inputs.shape[:-2]), **sizes)
        return remember(_projections(parameters), empty, key_inputs, value_inputs, key_valid, **self._projecting())

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
        """The next tokens of each example, all at once: their outputs, and the state behind them.

        In chunks of any size, and by `step`, tokens have the outputs that they have in the call on the whole sequence.
        A layer over a sequence needs a mask that hides the future, such as `Causal()`, for this to be so.

        Args:
            parameters: of the layer.
            inputs: `[..., new, in_features]`.
            state: of `initial_state`, `prefill` or `step`.
            mask: restricts the layer's own, as `&` does. It sees the positions of the whole sequence.
            valid: booleans `[..., new]` or `[new]`: which of the inputs are tokens, by default all. The others are
                padding, on either side: it takes no place and no position, and its outputs mean nothing.
            dropout_key: as of the call. The same key drops the same weights in every chunk as in the whole call.

        Returns:
            `[..., new, out_features]`, and the state. Of a sequence that has run out of places, outputs are NaN.

        Raises:
            ValueError: a state that is not one for these inputs; more tokens than there are places, where lengths are
                known (outside of `jax.jit`); pieces with arrays over keys that are not as long as the cache.
        """
        check_shapes({"in_features": self.in_features}, inputs=(inputs, "... new in_features"))
        check_decoding(state, inputs, int(self.kv_heads or 0), int(self.head_dim or 0), self._cross)
        pieces = self._pieces(parameters, mask)
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
        """The next token of each example, `[..., in_features]` -> `[..., out_features]`, and the state behind it.

        Arguments and errors as of `prefill`; `valid [...]` says which examples go on.

        >>> import jax, jattn
        >>> layer = MultiHeadAttention(64, 8, rotary=True, mask=jattn.masks.Causal())
        >>> parameters, x = layer.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 10, 64))
        >>> out, state = layer.prefill(parameters, x[:, :9], layer.initial_state(parameters, (3,), length=16))
        >>> last, state = layer.step(parameters, x[:, 9], state)
        >>> bool(jax.numpy.allclose(last, layer(parameters, x)[:, 9], atol=1e-5))
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
        """Whether keys must be made of other inputs than queries."""
        return self.in_kv_features != self.in_features

    def _pieces(self, parameters: Mapping[str, Any], mask: Any) -> dict[str, Any]:
        """The pieces, with what is learned from the parameters, and the mask of a call."""
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
    """The parameters of `multi_head`: all but those of the learned pieces."""
    return {name: group for name, group in parameters.items() if name in AXES}
