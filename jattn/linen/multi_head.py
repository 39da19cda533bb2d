"""Multi-head attention as a linen module, with typed attributes and random keys for dropout."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..foundation.arguments import check_dtype, check_flags, check_inputs, check_key, check_positive
from ..foundation.arrays import as_constant
from ..foundation.shapes import check_shapes
from ..layers import attention as data
from ..layers.caches import Spec
from ..layers.decoding import State
from ..layers.layer import method_of
from ..layers.learned import PIECES
from ..layers.norms import QKNorm
from ..parallel import Heads
from .layer import made


class MultiHeadAttention(nn.Module):
    """Multi-head attention with every choice of pieces, as a linen module.

    Holds the parameters of a `jattn.layers.MultiHeadAttention`; with the same weights it computes what
    `jattn.nnx.MultiHeadAttention` does. Names and shapes of parameters match `flax.linen.MultiHeadAttention`
    (`query/kernel [features, heads, head_dim]`, ..., `out/kernel`), so its checkpoints load. Note the order of the
    attributes: features, then heads; Flax takes heads first.

    Attributes:
        in_features: features of the inputs, by default inferred from them.
        q_heads: number of query heads; required.
        kv_heads: number of key and value heads, by default `q_heads`.
        head_dim: features of a head, by default `in_features / q_heads`.
        in_kv_features: features of the inputs that keys and values are computed from, by default inferred from them.
        out_features: features of the output, by default `in_features`.
        use_bias, qk_norm, rotary, dtype, kernel_init, out_kernel_init, bias_init, parallel, cache: as in
            `jattn.layers.MultiHeadAttention`.
        mask, similarity, scores, normalizer, implementation: as in `jattn.attention`.
        learned: the names of pieces whose floating-point arrays are parameters: `"normalizer"` trains a sink.
        dropout_rate: dropout rate of the weights; needs the rng `"dropout"`, unless deterministic.
        deterministic: whether to disable dropout; set here or at the call.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: sizes do not match; a piece is of the wrong kind; at the call, as in `jattn.layers.multi_head`.

    >>> import jax, jattn.linen
    >>> layer = jattn.linen.MultiHeadAttention(64, 8, kv_heads=2, rotary=True, mask=jattn.masks.Causal())
    >>> x = jax.numpy.ones((2, 10, 64))
    >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
    (2, 10, 64)
    """

    in_features: int | None = None
    q_heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    in_kv_features: int | None = None
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
    cache: Spec | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("in_features", "kv_heads", "head_dim", "in_kv_features")}
        check_positive(q_heads=self.q_heads, **{name: size for name, size in sizes.items() if size is not None})
        check_dtype("param_dtype", self.param_dtype)
        self._layer(None, None)  # which checks the attributes
        for name in PIECES:
            # Attributes are constants. `nn.jit` compares modules by them, which fails for JAX arrays.
            object.__setattr__(self, name, jax.tree.map(as_constant, getattr(self, name)))
        super().__post_init__()

    @nn.nowrap
    def _layer(self, in_features: int | None, in_kv_features: int | None) -> data.MultiHeadAttention:
        """The layer for inputs with this many features, which may be unknown if only its states are needed."""
        heads = self.q_heads or 1
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(data.MultiHeadAttention)}
        options |= {
            "in_features": self.in_features or in_features or heads * (self.head_dim or 1),
            "q_heads": heads,
            "in_kv_features": self.in_kv_features or in_kv_features,
        }
        return data.MultiHeadAttention(**options)

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
    ) -> jax.Array:
        """Attend from `inputs` to `key_inputs`.

        Args:
            inputs: `[..., q_len, features]`.
            key_inputs: `[..., kv_len, features]`; by default `inputs` (self-attention).
            value_inputs: `[..., kv_len, features]`; by default `key_inputs`.
            mask: combined with the module's own mask by `&`. To replace the module's own: `layer.clone(mask=...)`.
            positions, key_positions: as in `jattn.layers.multi_head`.
            deterministic: whether to disable dropout, if the attribute does not say.
            dropout_rng: a random key, instead of one made from the rng `"dropout"`.
        """
        check_inputs(inputs=inputs, key_inputs=key_inputs, value_inputs=value_inputs)
        return self.run(
            "__call__",
            self._for_inputs(inputs, key_inputs),
            inputs,
            key_inputs,
            value_inputs,
            mask=mask,
            positions=positions,
            key_positions=key_positions,
            dropout_key=self._dropout_key(deterministic, dropout_rng),
        )

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
        """The weights `[..., heads, queries, kv_len]`, before dropout; `heads` and `queries` select a few.

        Called as `layer.apply(variables, x, method="attention_weights")`.
        """
        check_inputs(inputs=inputs, key_inputs=key_inputs)
        at = {"positions": positions, "key_positions": key_positions}
        layer = self._for_inputs(inputs, key_inputs)
        return self.run("attention_weights", layer, inputs, key_inputs, mask=mask, **at, heads=heads, queries=queries)

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

        Called as `layer.apply(variables, (2,), length=100, method="initial_state")`.

        Args:
            batch: the batch axes of the inputs to come.
            length: the capacity in tokens per example.
            cache: another cache of `jattn.layers.caches`, instead of `length`.
            dtype: the dtype of the cached keys and values, by default that of the module or of its parameters.
            key_inputs, value_inputs, key_valid: for cross-attention, whose keys and values are computed here, once.

        Raises:
            ValueError: as there; the module has neither `in_features` nor `head_dim`, so the size of a head is unknown.
        """
        if self.in_features is None and self.head_dim is None:
            raise ValueError(
                "`in_features` (or `head_dim`) must be an attribute of the module to make a state: without inputs the "
                "size of a head is not known."
            )
        dtype = dtype or self.dtype or self.param_dtype
        check_inputs(key_inputs=key_inputs, value_inputs=value_inputs)
        options = {"length": length, "cache": cache, "dtype": dtype}
        options |= {"key_inputs": key_inputs, "value_inputs": value_inputs, "key_valid": key_valid}
        layer = self._layer(None, None if key_inputs is None else key_inputs.shape[-1])
        if key_inputs is None:  # which needs no parameters
            return layer.initial_state({}, batch, **options)
        return self.run("initial_state", layer, batch, **options)

    def prefill(
        self,
        inputs: jax.Array,
        state: Any = None,
        *,
        mask: Any = None,
        valid: Any = None,
        deterministic: bool | None = None,
        dropout_rng: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """The next tokens of each example at once, as in `jattn.layers.MultiHeadAttention.prefill`.

        Self-attention must have a mask that hides the future, such as `Causal()`, of the module or of this call.

        Called as `layer.apply(variables, x, state, method="prefill")`.

        Args:
            inputs: `[..., new, features]`.
            state: returned by `initial_state`, `prefill` or `step`.
            mask: combined with the module's own mask by `&`.
            valid: booleans `[..., new]` or `[new]`, False for padding.
            deterministic, dropout_rng: as in `__call__`.
        """
        check_inputs(inputs=inputs)
        key = self._dropout_key(deterministic, dropout_rng)
        layer = self._layer(inputs.shape[-1], self._known_kv_features())
        return self.run("prefill", layer, inputs, state, mask=mask, valid=valid, dropout_key=key)

    def step(
        self,
        inputs: jax.Array,
        state: Any,
        *,
        mask: Any = None,
        valid: Any = None,
        deterministic: bool | None = None,
        dropout_rng: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """The next token of each example, `[..., features]` -> `[..., features]`, and the state after it.

        Arguments as in `prefill`; `valid [...]` says which examples advance.
        """
        check_shapes(inputs=(inputs, "... in_features"))
        key = self._dropout_key(deterministic, dropout_rng)
        layer = self._layer(inputs.shape[-1], self._known_kv_features())
        return self.run("step", layer, inputs, state, mask=mask, valid=valid, dropout_key=key)

    @nn.compact
    def run(self, method: str, layer: data.MultiHeadAttention, *inputs: Any, **options: Any) -> Any:
        """Call a method of the layer by name, with the module's parameters."""
        parameters = {name: made(self, name, node, self.param_dtype) for name, node in layer.parameters().items()}
        return method_of(layer, method)(parameters, *inputs, **options)

    @nn.nowrap
    def _for_inputs(self, inputs: jax.Array, key_inputs: jax.Array | None) -> data.MultiHeadAttention:
        return self._layer(inputs.shape[-1], (inputs if key_inputs is None else key_inputs).shape[-1])

    def _known_kv_features(self) -> int | None:
        """The features that keys are computed from, as in the parameters: after cross-attention, inputs do not tell."""
        parameters = self.get_variable("params", "key")
        return None if parameters is None else jnp.shape(nn.unbox(parameters["kernel"]))[0]

    def _dropout_key(self, deterministic: bool | None, key: jax.Array | None) -> jax.Array | None:
        """A random key if weights are to be dropped, else None."""
        if self.dropout_rate == 0:
            return None
        if (self.deterministic is None) == (deterministic is None):
            raise ValueError(
                "`deterministic` must be given either to the module or to the call, as `dropout_rate` is not 0: True "
                f"turns dropout off; got {self.deterministic} and {deterministic}."
            )
        chosen = self.deterministic if deterministic is None else deterministic
        check_flags(deterministic=chosen)
        if chosen:
            return None
        if key is not None:
            check_key("dropout_rng", key)
        return self.make_rng("dropout") if key is None else key
