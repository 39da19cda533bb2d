"""Multi-head layers of kernelized attention: the same call as `MultiHeadAttention`, with a step for decoding."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import (
    check_choice,
    check_counts,
    check_flags,
    check_key,
    check_multiple,
    check_number,
    check_positive,
)
from ...foundation.shapes import check_shapes
from ...layers.generation import Generative
from ...layers.layer import bias, kernel, project
from .attention import KernelState, kernel_state, kernelized_attention, kernelized_step
from .features import ELU, Cosine, FeatureMap, Learned, Taylor
from .performer import KINDS, RandomFeatures, orthogonal_projection

TO_HEADS = "...f,fhd->...hd"


class LayerState(NamedTuple):
    """The decoding state: the sums of one `KernelState`, and the position of the next token."""

    kernel: KernelState
    position: jax.Array


@dataclasses.dataclass(frozen=True)
class KernelizedAttention(Generative):
    """Base of the layers: projections to heads, `kernelized_attention`, and back. A subclass defines the feature map.

    Args:
        features: features of inputs and output.
        heads: number of heads, of queries and keys alike.
        causal: whether a token sees only itself and previous tokens; required by `step`.
        head_dim: features of values, by default `features / heads`.
        qk_dim: features of queries and keys, by default `head_dim`.
        epsilon: ε of the normalizer.

    Raises:
        ValueError: a size is below 1, `epsilon` is negative, or the heads do not divide the features; as in
            `kernelized_attention`.
    """

    features: int
    heads: int
    causal: bool = True
    head_dim: int | None = None
    qk_dim: int | None = None
    epsilon: float = 0.0

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads)
        if self.head_dim is None:
            check_multiple("heads", features=self.features, heads=self.heads, unless="head_dim")
            object.__setattr__(self, "head_dim", self.features // self.heads)
        if self.qk_dim is None:
            object.__setattr__(self, "qk_dim", self.head_dim)
        check_positive(head_dim=self.head_dim, qk_dim=self.qk_dim)
        check_flags(causal=self.causal)
        check_number("epsilon", self.epsilon, least=0)

    @abc.abstractmethod
    def feature_map(self, parameters: Mapping[str, Any]) -> FeatureMap:
        """φ, with the layer's parameters."""

    def redrawn(self, parameters: Mapping[str, Any], redraw: jax.Array | None) -> FeatureMap:
        """φ, redrawn if a key is given; only random maps can be."""
        if redraw is not None:
            raise ValueError(f"`redraw` is for random features; the feature map of {type(self).__name__} has none.")
        return self.feature_map(parameters)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value` and `out`, with the names and shapes of `jattn.layers.multi_head`; no biases."""
        narrow, wide = int(self.qk_dim or 0), int(self.head_dim or 0)
        return {
            "query": {"kernel": kernel(self.features, self.heads, narrow)},
            "key": {"kernel": kernel(self.features, self.heads, narrow)},
            "value": {"kernel": kernel(self.features, self.heads, wide)},
            "out": {"kernel": kernel(self.heads, wide, self.features, inputs=2)},
        }

    def __call__(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        key_inputs: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        segment_ids: Any = None,
        redraw: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            key_inputs: the source of keys and values, `[..., kv_len, features]`; by default `inputs`.
            mask: booleans `[..., kv_len]`, False for padding.
            segment_ids: ids of packed sequences, causal form only.
            redraw: a random key, for other random features than the layer's own.
        """
        return self._run(parameters, inputs, key_inputs, mask=mask, segment_ids=segment_ids, redraw=redraw)[0]

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: LayerState | None = None,
        *,
        mask: jax.Array | None = None,
        segment_ids: Any = None,
        redraw: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerState]:
        """The causal call, continuing from `state` if given, and the state after its last token.

        Arguments and errors as in the call and in `Generative.prefill`.
        """
        self._check_causal()
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        before = self.checked(parameters, inputs, inputs.shape[:-2], state)
        # Known positions are checked against the map's `max_len`.
        positions = None if state is None else before.position + jnp.arange(inputs.shape[-2])
        kernel_state = None if state is None else before.kernel
        given = {"mask": mask, "segment_ids": segment_ids, "redraw": redraw}
        out, last = self._run(parameters, inputs, positions=positions, initial_state=kernel_state, **given)
        return out, LayerState(last, before.position + inputs.shape[-2])

    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> LayerState:
        """The state before the first token, for sequences with these batch axes."""
        sizes = (self.heads, int(self.qk_dim or 0), int(self.head_dim or 0))
        return LayerState(kernel_state(self.feature_map(parameters), batch, *sizes, dtype), jnp.zeros((), jnp.int32))

    def step(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: LayerState, *, redraw: jax.Array | None = None
    ) -> tuple[jax.Array, LayerState]:
        """One token, O(1): `[..., features]` and the state before it -> `[..., features]` and the state after it."""
        self._check_causal()
        check_shapes({"features": self.features}, inputs=(inputs, "... features"))
        state = self.checked(parameters, inputs, inputs.shape[:-1], state)
        query, key, value = (project(parameters[name], inputs, TO_HEADS) for name in ("query", "key", "value"))
        features = self.redrawn(parameters, redraw)
        position = jnp.broadcast_to(state.position, inputs.shape[:-1])
        out, last = kernelized_step(query, key, value, features, state.kernel, epsilon=self.epsilon, position=position)
        return _join(parameters, out), LayerState(last, state.position + 1)

    def _run(self, parameters, inputs, key_inputs=None, *, redraw=None, **options) -> tuple[jax.Array, KernelState]:
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        if key_inputs is None:
            key_inputs = inputs
        elif self.causal:
            raise ValueError("`key_inputs` need `causal=False`: a causal layer attends to its own inputs.")
        check_shapes({"features": self.features}, key_inputs=(key_inputs, "... kv_len features"))
        query = project(parameters["query"], inputs, TO_HEADS)
        key, value = (project(parameters[name], key_inputs, TO_HEADS) for name in ("key", "value"))
        features = self.redrawn(parameters, redraw)
        out, state = kernelized_attention(
            query, key, value, features, causal=self.causal, epsilon=self.epsilon, **options
        )
        return _join(parameters, out), state

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError("Decoding needs a layer with `causal=True`; this one sees later tokens, too.")


@dataclasses.dataclass(frozen=True)
class LinearTransformer(KernelizedAttention):
    """Linear Transformer: φ = elu + 1 (`ELU`). Katharopoulos et al. 2020 (arXiv:2006.16236).

    Arguments and errors as in `KernelizedAttention`.

    Demonstrated in `examples/experiments/copying.py`.

    >>> import jax
    >>> layer = LinearTransformer(16, 2)
    >>> parameters = layer.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (3, 10, 16))
    >>> start, state = jax.jit(layer.prefill)(parameters, x[:, :9])
    >>> last, state = jax.jit(layer.step)(parameters, x[:, 9], state)
    >>> bool(jax.numpy.allclose(last, jax.jit(layer)(parameters, x)[:, 9], atol=1e-5))
    True
    """

    def feature_map(self, parameters):
        del parameters
        return ELU()


@dataclasses.dataclass(frozen=True)
class Performer(KernelizedAttention):
    """Performer: random features of the softmax (`RandomFeatures`). Choromanski et al. 2021 (arXiv:2009.14794).

    Args:
        random_features: m, rows of the projection; by default 2 `qk_dim`.
        kind: `"positive"`, `"hyperbolic"` or `"relu"`.
        seed: seed of the projection. To redraw it, for example every thousand training steps, pass a key to the call as
            `redraw`; a `step` needs the same key as its prefill.

    Other arguments and errors as in `KernelizedAttention`.

    >>> import jax
    >>> layer = Performer(16, 2, random_features=32)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    random_features: int | None = None
    kind: str = "positive"
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_choice("kind", self.kind, KINDS)
        if self.random_features is None:
            object.__setattr__(self, "random_features", 2 * int(self.qk_dim or 0))
        check_positive(random_features=self.random_features)
        check_counts(seed=self.seed)

    def feature_map(self, parameters):
        return self.redrawn(parameters, jax.random.key(self.seed))

    def redrawn(self, parameters, redraw):
        if redraw is None:
            return self.feature_map(parameters)
        check_key("redraw", redraw)
        sizes = int(self.random_features or 0), int(self.qk_dim or 0)
        return RandomFeatures(orthogonal_projection(redraw, *sizes), self.kind)


@dataclasses.dataclass(frozen=True)
class CosFormer(KernelizedAttention):
    """cosFormer: ReLU features, weighted by the cosine of the distance (`Cosine`). Qin et al. 2022 (arXiv:2202.08791).

    Args:
        max_len: M, the length of the longest sequence. Positions beyond it raise where they are known, and give NaN
            where they are traced.

    Other arguments and errors as in `KernelizedAttention`.

    >>> import jax
    >>> layer = CosFormer(16, 2, max_len=100)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    max_len: int = 1024

    def feature_map(self, parameters):
        del parameters
        return Cosine(self.max_len)


@dataclasses.dataclass(frozen=True)
class Hedgehog(KernelizedAttention):
    """Hedgehog: learned feature maps (`Learned`), one per head. Zhang et al. 2024 (arXiv:2402.04347).

    The paper trains them to mimic a softmax; here they are trained with the rest of the model.

    Arguments and errors as in `KernelizedAttention`.

    >>> import jax
    >>> layer = Hedgehog(16, 2)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    def parameters(self):
        dim = int(self.qk_dim or 0)
        maps = {
            name: {
                "kernel": kernel(self.heads, dim, dim, inputs=2)._replace(init=_identities),
                "bias": bias(self.heads, dim),
            }
            for name in ("query_map", "key_map")
        }
        return {**super().parameters(), **maps}

    def feature_map(self, parameters):
        query, key = parameters["query_map"], parameters["key_map"]
        return Learned(query["kernel"], query["bias"], key["kernel"], key["bias"])


@dataclasses.dataclass(frozen=True)
class Based(KernelizedAttention):
    """Based: the second-order Taylor polynomial of exp (`Taylor`). Arora et al. 2024 (arXiv:2402.18668).

    The state has (1 + qk_dim + qk_dim²) numbers for each feature of a value, so `qk_dim` is 16 unless given. The
    paper's model alternates it with windows of 64 tokens: `MultiHeadAttention(mask=jattn.masks.SlidingWindow(63, 0))`.

    Other arguments and errors as in `KernelizedAttention`.

    >>> import jax
    >>> layer = Based(16, 2)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    qk_dim: int | None = 16

    def feature_map(self, parameters):
        del parameters
        return Taylor()


def _join(parameters: Mapping[str, Any], heads: jax.Array) -> jax.Array:
    return jnp.einsum("...hd,hdf->...f", heads, parameters["out"]["kernel"])


def _identities(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Identity matrices, stacked."""
    del key
    return jnp.tile(jnp.eye(shape[1], dtype=dtype), (shape[0] // shape[1], 1))
