"""Coverage: attention that sees the sum of its earlier weights, and a loss against repeated attention."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_flags, check_positive
from ...foundation.numerics import accumulation_dtype, softmax_or_zero
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel


class Attended(NamedTuple):
    """The result of one step of attention.

    Attributes:
        context: `[..., source_features]`, Σ_i a_i h_i, in the dtype of the sources.
        weights: a, `[..., kv_len]`.
        scores: e, before the softmax, -inf where masked, for `pointer_log_probabilities`.
        coverage: the coverage for the next step: the sum of the current one and a.
    """

    context: jax.Array
    weights: jax.Array
    scores: jax.Array
    coverage: jax.Array


@dataclasses.dataclass(frozen=True)
class CoverageAttention(Layer):
    """Coverage: additive attention of a decoder that sees the sum of the weights of earlier steps.

        e_i^t = vᵀ tanh(W_h h_i + W_s s_t + w_c c_i^t + b)
        a^t = softmax(e^t),    c^t = Σ_{t' < t} a^{t'},    context_t = Σ_i a_i^t h_i

    See, Liu & Manning 2017 (arXiv:1704.04368), equations 1 to 3, 10 and 11. c^t sums the earlier steps only: at the
    first step it is zero. With `coverage=False` the term w_c is left out, and a step is that of Bahdanau et al. 2015
    (arXiv:1409.0473) and equals `jattn.attention(..., similarity=jattn.similarities.Additive(...))`, which is
    preferable if all steps are known at once. With coverage, steps are sequential: the scores of each need the weights
    of all earlier ones. A step takes O(kv_len) time and memory.

    Args:
        state_features: features of the decoder's state s.
        source_features: features of the encoder's states h.
        features: features of the hidden layer.
        coverage: whether scores depend on c.

    Raises:
        ValueError: a size is below 1; `coverage` is not a flag; at a call, shapes do not match.

    >>> import jax, jax.numpy as jnp
    >>> layer = CoverageAttention(8, 6, 16)
    >>> parameters = layer.init(jax.random.key(0))
    >>> attended = jax.jit(layer)(parameters, jnp.ones((2, 5, 8)), jnp.ones((2, 9, 6)))
    >>> attended.context.shape, attended.weights.shape
    ((2, 5, 6), (2, 5, 9))
    """

    own_axes = OWN_AXES

    state_features: int
    source_features: int
    features: int
    coverage: bool = True

    def __post_init__(self):
        check_positive(**self._sizes())
        check_flags(coverage=self.coverage)

    def _sizes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("state_features", "source_features", "features")}

    def parameters(self) -> dict[str, Any]:
        """`source`, `state`: kernels to `features`; `coverage` (initially zero), `vector`, `bias`: `[features]`."""
        declared = {
            "source": kernel(self.source_features, self.features),
            "state": kernel(self.state_features, self.features),
            "vector": kernel(self.features),
            "bias": bias(self.features),
        }
        return declared | ({"coverage": bias(self.features)} if self.coverage else {})

    def keys(self, parameters: Mapping[str, Any], sources: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
        """W_h h + b, `[..., kv_len, features]`, float32 (float64), computed once for all steps.

        Args:
            parameters: the layer's parameters.
            sources: h, `[..., kv_len, source_features]`.
            allowed: booleans `[..., kv_len]`, as in `step`.
        """
        check_shapes(self._sizes(), sources=(sources, "... kv_len source_features"))
        sources = _without_padding(sources, allowed)
        dtype = accumulation_dtype(sources)
        return sources.astype(dtype) @ parameters["source"].astype(dtype) + parameters["bias"].astype(dtype)

    def step(
        self,
        parameters: Mapping[str, Any],
        coverage: jax.Array,
        state: jax.Array,
        keys: jax.Array,
        sources: jax.Array,
        allowed: jax.Array | None = None,
    ) -> Attended:
        """One step, for the body of a `jax.lax.scan` that carries the `coverage`, initially zeros `[..., kv_len]`.

        Args:
            parameters: the layer's parameters.
            coverage: c, `[..., kv_len]`, of earlier steps.
            state: s, `[..., state_features]`.
            keys: the result of `keys`.
            sources: h, `[..., kv_len, source_features]`.
            allowed: booleans `[..., kv_len]`, False for padding; by default all True. If none is True, the context is
                0.

        Returns:
            `Attended`, whose `coverage` the next step takes.
        """
        check_shapes(
            self._sizes(),
            sources=(sources, "... kv_len source_features"),
            keys=(keys, "... kv_len features"),
            coverage=(coverage, "... kv_len"),
            state=(state, "... state_features"),
        )
        dtype = keys.dtype
        values = _without_padding(sources, allowed).astype(dtype)
        allowed = jnp.ones(coverage.shape, bool) if allowed is None else allowed
        hidden = keys + (state.astype(dtype) @ parameters["state"].astype(dtype))[..., None, :]
        if self.coverage:
            hidden = hidden + coverage.astype(dtype)[..., None] * parameters["coverage"].astype(dtype)
        scores = jnp.where(allowed, jnp.tanh(hidden) @ parameters["vector"].astype(dtype), -jnp.inf)
        weights = softmax_or_zero(scores)
        context = jnp.einsum("...k,...kd->...d", weights, values).astype(sources.dtype)
        return Attended(context, weights, scores, coverage + weights)

    def __call__(
        self,
        parameters: Mapping[str, Any],
        states: jax.Array,
        sources: jax.Array,
        allowed: jax.Array | None = None,
    ) -> Attended:
        """All steps, if the states are known beforehand: each array has a `steps` axis before its last.

        Args:
            parameters: the layer's parameters.
            states: s, `[..., steps, state_features]`.
            sources: h, `[..., kv_len, source_features]`.
            allowed: booleans `[..., kv_len]`.
        """
        check_shapes(
            self._sizes(),
            states=(states, "... steps state_features"),
            sources=(sources, "... kv_len source_features"),
        )
        keys = self.keys(parameters, sources, allowed)

        def body(coverage, state):
            attended = self.step(parameters, coverage, state, keys, sources, allowed)
            return attended.coverage, attended

        steps = jax.lax.scan(body, jnp.zeros_like(keys[..., 0]), jnp.moveaxis(states, -2, 0))[1]
        return Attended(*(jnp.moveaxis(array, 0, -2) for array in steps))


def _without_padding(sources: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """Replace padding, so that its contents, NaN included, reach neither scores, context nor gradients."""
    if allowed is None:
        return sources
    check_shapes(kind=jnp.bool_, allowed=(allowed, " ".join(map(str, sources.shape[:-1]))))
    return jnp.where(allowed[..., None], sources, 0)


def coverage_of(weights: jax.Array) -> jax.Array:
    """c^t = Σ_{t' < t} a^{t'}, the coverage before each step.

    Args:
        weights: a, `[..., steps, kv_len]`.

    Returns:
        The same shape, float32 (float64); zero at the first step.

    Raises:
        ValueError: there are fewer than two axes.

    >>> import jax.numpy as jnp
    >>> print(coverage_of(jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])))
    [[0.  0. ]
     [1.  0. ]
     [1.5 0.5]]
    """
    check_shapes(weights=(weights, "... steps kv_len"))
    earlier = jnp.cumsum(weights.astype(accumulation_dtype(weights)), -2)[..., :-1, :]
    return jnp.pad(earlier, [(0, 0)] * (weights.ndim - 2) + [(1, 0), (0, 0)])[..., : weights.shape[-2], :]


def coverage_loss(weights: jax.Array) -> jax.Array:
    """Σ_i min(a_i^t, c_i^t) for each step t: attention to positions that were attended before.

    See et al. 2017 (arXiv:1704.04368), equation 12. Between 0 and 1; 0 at the first step. The paper adds it to the
    step's negative log-likelihood, with weight 1, after training without it.

    Args:
        weights: a, `[..., steps, kv_len]`.

    Returns:
        `[..., steps]`, float32 (float64).

    Raises:
        ValueError: there are fewer than two axes.

    >>> import jax.numpy as jnp
    >>> print(coverage_loss(jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])))
    [0.  0.5 0.5]
    """
    return jnp.minimum(weights, coverage_of(weights)).sum(-1)
