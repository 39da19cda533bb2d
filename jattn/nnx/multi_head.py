"""Multi-head attention for nnx."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arrays import describe, dtype_of
from ..foundation.shapes import check_flags, check_key
from ..layers import learned as pieces_of
from ..layers.multi_head import multi_head, multi_head_weights
from ..layers.norms import QKNorm, as_qk_norm
from ..layers.options import check_options
from ..layers.parameters import Shape, Sizes, initialize, parameter_shapes
from ..masks.base import restricted
from ..ops.attention.checks import check_pieces
from ..ops.attention.dropout import Dropout
from ..parallel import Heads


class PieceArray(nnx.Variable):
    """An array of a piece that is not trained: state of the module, beside its parameters."""


@jax.tree_util.register_static
class _Known:
    """A NumPy array in a module, that stays one under `nnx.jit`: what is known gives plans that are known."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))


class _Group(nnx.Module):
    """The parameters of one projection or norm."""

    def __init__(self, shapes: dict[str, Shape], inits: dict[str, Callable[..., Any]], dtype: Any, rngs: nnx.Rngs):
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(initialize(inits[name], rngs.params(), shape, dtype)))


class MultiHeadAttention(nnx.Module):
    """Multi-head attention with every choice of pieces, in nnx.

    The equation and the meaning of the arguments are those of `jattn.layers.multi_head`. Parameters are named and
    shaped as in `flax.nnx.MultiHeadAttention` (`query.kernel [features, heads, head_dim]`, ..., `out.kernel`), so
    that a state of its parameters fits; with the same weights the two are equal, where Flax can express the choice.

    Args:
        q_heads: query heads.
        in_features: features of the inputs.
        kv_heads: key and value heads, by default `q_heads`; `q_heads` must be a multiple of it.
        head_dim: by default `in_features / q_heads`; any size.
        in_kv_features: features of the inputs that keys and values are made of, by default `in_features`.
        out_features: by default `in_features`.
        use_bias: whether projections add a bias; or the names of those that do, `("query", "value", "out")` for
            Whisper, whose keys have none.
        qk_norm: whether query and key are normed, each head by its root mean square, with learned scales; or a
            `jattn.layers.QKNorm` that says how: over all heads, by mean and variance, with 1 + w.
        mask, similarity, scores, normalizer, implementation: as of `jattn.attention`.
        rotary: True, or a function of `x [..., length, heads, dim]` and positions, such as
            `functools.partial(jattn.positions.rotary, base=500000.0)`.
        learned: the names of pieces whose floating-point arrays are `nnx.Param`s: `"normalizer"` trains a sink,
            `"scores"` a bias table. Other arrays of JAX in pieces are `PieceArray`s, state that is not trained; those
            of NumPy are static, and known while tracing.
        dropout_rate: of the weights.
        deterministic: whether to leave dropout out; `train()` and `eval()` of a module set it, and `nnx.view`.
        dtype: to compute in; by default the one that inputs and parameters promote to.
        param_dtype: of the parameters.
        kernel_init, out_kernel_init, bias_init: as in Flax; they see a kernel as a matrix. The output projection's
            is by default `kernel_init`.
        parallel: `jattn.parallel.Heads(...)` to split the heads over devices.
        rngs: of the parameters, and of dropout.

    Raises:
        ValueError: sizes that do not fit; a wrong piece; at the call, as `jattn.layers.multi_head`.

    >>> import jax, jattn.nnx
    >>> from flax import nnx
    >>> layer = jattn.nnx.MultiHeadAttention(
    ...     8, 64, kv_heads=2, rotary=True, qk_norm=True, mask=lambda q, k: (k <= q) & (q - k < 300), rngs=nnx.Rngs(0)
    ... )
    >>> layer(jax.numpy.ones((2, 10, 64))).shape
    (2, 10, 64)
    """

    query: Any
    key: Any
    value: Any
    out: Any
    mask: Any
    similarity: Any
    scores: Any
    normalizer: Any

    def __init__(
        self,
        q_heads: int,
        in_features: int,
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
        rngs: nnx.Rngs,
    ):
        check_options(
            rotary=rotary,
            dropout_rate=dropout_rate,
            implementation=implementation,
            parallel=parallel,
            dtypes={"dtype": dtype, "param_dtype": param_dtype},
            initializers={"kernel_init": kernel_init, "out_kernel_init": out_kernel_init, "bias_init": bias_init},
            use_bias=use_bias,
            qk_norm=qk_norm,
            deterministic=deterministic,
        )
        check_rngs(rngs)
        self.sizes = Sizes(q_heads, in_features, kv_heads, head_dim, in_kv_features, out_features)
        self.qk_norm = as_qk_norm(qk_norm)
        inits = {"kernel": kernel_init, "bias": bias_init}
        shapes = parameter_shapes(self.sizes, use_bias=use_bias, qk_norm=qk_norm)
        self.groups = tuple(shapes)
        for group, members in shapes.items():
            own = {**inits, "kernel": out_kernel_init} if group == "out" and out_kernel_init else inits
            if self.qk_norm is not None and group.endswith("_norm"):
                own = self.qk_norm.initializers()
            setattr(self, group, _Group(members, own, param_dtype, rngs))
        mask, similarity, scores, normalizer, _ = check_pieces(mask, similarity, scores, normalizer, None)
        pieces = {"mask": mask, "similarity": similarity, "scores": scores, "normalizer": normalizer}
        trained = pieces_of.check_learned(learned, pieces)
        for name, piece in pieces.items():
            setattr(self, name, nnx.data(_held(piece, name in trained)))
        self.rotary = rotary
        self.implementation = implementation
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.dtype = dtype
        self.parallel = parallel
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
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> jax.Array:
        """Attend.

        Args:
            inputs: `[..., q_len, features]`.
            key_inputs: `[..., kv_len, features]`; by default `inputs`.
            value_inputs: likewise; by default `key_inputs`.
            mask: restricts the module's own, as `&` does. To attend with another in its place:
                `layer.with_pieces(mask=...)`.
            positions, key_positions: as of `jattn.layers.multi_head`.
            deterministic: whether to leave dropout out, over the module's own.
            rngs: of dropout, instead of the module's own: `nnx.Rngs`, one of its streams, or a random key.
        """
        return multi_head(
            _parameters(self),
            inputs,
            key_inputs,
            value_inputs,
            **self._arguments(mask, positions, key_positions),
            dropout=self._dropout(deterministic, rngs),
            implementation=self.implementation,
            parallel=self.parallel,
        )

    def weights(
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
        """The weights `[..., heads, queries, kv_len]`, before dropout; `heads` and `queries` ask for a few."""
        arguments = self._arguments(mask, positions, key_positions)
        return multi_head_weights(_parameters(self), inputs, key_inputs, **arguments, heads=heads, queries=queries)

    def with_pieces(self, **pieces: Any) -> "MultiHeadAttention":
        """The same layer, on the same parameters, with other pieces; `mask=None` takes the mask away.

        Args:
            **pieces: `mask`, `similarity`, `scores`, `normalizer`, in place of the module's own. Their arrays are not
                trained.

        Raises:
            ValueError: another name; no such piece.

        >>> import jax, jattn.nnx
        >>> from flax import nnx
        >>> layer = jattn.nnx.MultiHeadAttention(8, 64, mask=jattn.masks.Causal(), rngs=nnx.Rngs(0))
        >>> both_ways = layer.with_pieces(mask=None)
        >>> both_ways.query.kernel is layer.query.kernel
        True
        """
        unknown = pieces.keys() - set(pieces_of.LEARNABLE)
        if unknown:
            raise ValueError(f"pieces are {', '.join(pieces_of.LEARNABLE)}; got {sorted(unknown)}.")
        mask, similarity, scores, normalizer = (pieces.get(name) for name in pieces_of.LEARNABLE)
        checked = check_pieces(mask, similarity, scores, normalizer, None)
        other = nnx.view(self, raise_if_not_found=False)
        for name, piece in zip(pieces_of.LEARNABLE, checked, strict=False):
            if name in pieces:
                setattr(other, name, nnx.data(_held(piece, False)))
        return other

    def set_view(self, deterministic: bool | None = None) -> None:
        """Called by `nnx.view`.

        Args:
            deterministic: whether to leave dropout out.
        """
        if deterministic is not None:
            check_flags(deterministic=deterministic)
            self.deterministic = deterministic

    def parameters(self) -> dict[str, dict[str, jax.Array]]:
        """The arrays, as the tree that `jattn.layers.multi_head` takes."""
        return _parameters(self)

    def _arguments(self, mask: Any, positions: Any, key_positions: Any) -> dict[str, Any]:
        pieces = {name: _released(getattr(self, name)) for name in pieces_of.LEARNABLE}
        pieces["mask"] = restricted(pieces["mask"], mask)
        at = {"positions": positions, "key_positions": key_positions}
        return dict(**pieces, **at, rotary=self.rotary, qk_norm=self.qk_norm, dtype=self.dtype)

    def _dropout(self, deterministic: bool | None, rngs: nnx.Rngs | nnx.RngStream | None) -> Dropout | None:
        if deterministic is not None:
            check_flags(deterministic=deterministic)
        if self.dropout_rate == 0 or (self.deterministic if deterministic is None else deterministic):
            return None
        return Dropout(self.dropout_rate, _dropout_key(self.rngs if rngs is None else rngs))


def check_rngs(rngs: Any) -> None:
    """Streams of random keys, to draw parameters with.

    Raises:
        ValueError: something else.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"`rngs` must be streams of random keys, such as `nnx.Rngs(0)`; got {describe(rngs)}.")


def _dropout_key(rngs: Any) -> Any:
    """The next key of a stream; a key itself."""
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


def _parameters(layer: MultiHeadAttention) -> dict[str, dict[str, jax.Array]]:
    return {
        group: {name: value[...] for name, value in vars(getattr(layer, group)).items() if _is_param(value)}
        for group in layer.groups
    }


def _is_param(value: Any) -> bool:
    return isinstance(value, nnx.Param)


def _held(piece: Any, trained: bool) -> Any:
    """A piece as a module keeps it: arrays to train are parameters, and NumPy arrays are static."""

    def one(leaf: Any) -> Any:
        if trained and pieces_of.is_trainable(leaf):
            return nnx.Param(jnp.asarray(leaf))
        if isinstance(leaf, np.ndarray):
            return _Known(leaf)
        return PieceArray(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(one, piece)


def _released(piece: Any) -> Any:
    """The piece as it was given, with the current values of its parameters."""

    def one(leaf: Any) -> Any:
        return leaf[...] if isinstance(leaf, nnx.Variable) else leaf.array if isinstance(leaf, _Known) else leaf

    return jax.tree.map(one, piece, is_leaf=lambda node: isinstance(node, (nnx.Variable, _Known)))
