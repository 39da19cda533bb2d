"""Multi-head attention as a layer: sizes and pieces, and the parameters that they need."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from ..masks.base import restricted
from ..ops.attention.checks import check_pieces
from ..ops.attention.dropout import Dropout
from ..parallel import Heads
from . import learned as pieces_of
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
