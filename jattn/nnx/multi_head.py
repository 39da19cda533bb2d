"""Multi-head attention for nnx."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.checks import check_pieces
from ..core.dropout import Dropout
from ..modules import learned as pieces_of
from ..modules.multi_head import multi_head, multi_head_weights
from ..modules.parameters import Shape, Sizes, initialize, parameter_shapes
from ..parallel import Heads


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

    The equation and the meaning of the arguments are those of `jattn.modules.multi_head`. Parameters are named and
    shaped as in `flax.nnx.MultiHeadAttention` (`query.kernel [features, heads, head_dim]`, ..., `out.kernel`), so
    that a state of its parameters fits; with the same weights the two are equal, where Flax can express the choice.

    Args:
        q_heads: query heads.
        in_features: features of the inputs.
        kv_heads: key and value heads, by default `q_heads`; `q_heads` must be a multiple of it.
        head_dim: by default `in_features / q_heads`; any size.
        in_kv_features: features of the inputs that keys and values are made of, by default `in_features`.
        out_features: by default `in_features`.
        use_bias: whether projections add a bias.
        qk_norm: whether query and key are normed, each head by its root mean square, with learned scales.
        mask, similarity, scores, normalizer, implementation: as of `jattn.attention`.
        rotary: True, or a function of `x [..., length, heads, dim]` and positions, such as
            `functools.partial(jattn.positions.rotary, base=500000.0)`.
        learned: the names of pieces whose floating-point arrays are `nnx.Param`s: `"normalizer"` trains a sink,
            `"scores"` a bias table. Other arrays in pieces are state that is not trained.
        dropout_rate: of the weights.
        deterministic: whether to leave dropout out; `train()` and `eval()` of a module set it.
        dtype: to compute in; by default the one that inputs and parameters promote to.
        param_dtype: of the parameters.
        kernel_init, out_kernel_init, bias_init: as in Flax; they see a kernel as a matrix. The output projection's
            is by default `kernel_init`.
        parallel: `jattn.parallel.Heads(...)` to split the heads over devices.
        rngs: of the parameters, and of dropout.

    Raises:
        ValueError: sizes that do not fit; a wrong piece; at the call, as `jattn.modules.multi_head`.

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
        use_bias: bool = True,
        qk_norm: bool = False,
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
        self.sizes = Sizes(q_heads, in_features, kv_heads, head_dim, in_kv_features, out_features)
        inits = {"kernel": kernel_init, "bias": bias_init, "scale": nnx.initializers.ones_init()}
        shapes = parameter_shapes(self.sizes, use_bias=use_bias, qk_norm=qk_norm)
        self.groups = tuple(shapes)
        for group, members in shapes.items():
            own = {**inits, "kernel": out_kernel_init} if group == "out" and out_kernel_init else inits
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
            mask: instead of the module's own, if given.
            positions, key_positions: as of `jattn.modules.multi_head`.
            deterministic: whether to leave dropout out, over the module's own.
            rngs: of dropout, instead of the module's own.
        """
        return multi_head(
            self.parameters(),
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
        return multi_head_weights(self.parameters(), inputs, key_inputs, **arguments, heads=heads, queries=queries)

    def parameters(self) -> dict[str, dict[str, jax.Array]]:
        """The arrays, as the tree that `jattn.modules.multi_head` takes."""
        return {
            group: {name: value[...] for name, value in vars(getattr(self, group)).items() if _is_param(value)}
            for group in self.groups
        }

    def _arguments(self, mask: Any, positions: Any, key_positions: Any) -> dict[str, Any]:
        pieces = {name: _released(getattr(self, name)) for name in pieces_of.LEARNABLE}
        if mask is not None:
            pieces["mask"] = mask
        return dict(**pieces, rotary=self.rotary, positions=positions, key_positions=key_positions, dtype=self.dtype)

    def _dropout(self, deterministic: bool | None, rngs: nnx.Rngs | nnx.RngStream | None) -> Dropout | None:
        if self.dropout_rate == 0 or (self.deterministic if deterministic is None else deterministic):
            return None
        stream: Any = self.rngs if rngs is None else rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs
        return Dropout(self.dropout_rate, stream())


def _is_param(value: Any) -> bool:
    return isinstance(value, nnx.Param)


def _held(piece: Any, trained: bool) -> Any:
    """A piece as a module keeps it: arrays to train are parameters, and NumPy arrays are static."""

    def one(leaf: Any) -> Any:
        if trained and pieces_of.is_trainable(leaf):
            return nnx.Param(jnp.asarray(leaf))
        return _Known(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(one, piece)


def _released(piece: Any) -> Any:
    """The piece as it was given, with the current values of its parameters."""

    def one(leaf: Any) -> Any:
        return leaf[...] if _is_param(leaf) else leaf.array if isinstance(leaf, _Known) else leaf

    return jax.tree.map(one, piece, is_leaf=lambda node: _is_param(node) or isinstance(node, _Known))
