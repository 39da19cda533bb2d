"""Show, Attend and Tell: gated soft attention over an image, and its hard form."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_baseline, check_key, check_positive
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel
from ...ops.attention.api import attention, attention_weights
from ...similarities import Additive


class Glimpse(NamedTuple):
    """The result of hard attention.

    Attributes:
        context: `[..., steps, annotation_features]`.
        log_probability: log α of the sampled annotation, `[..., steps]`; 0 if the step used α itself.
        entropy: entropy of α, `[..., steps]`.
        sampled: booleans `[..., steps]`, whether the step attended to a sampled annotation.
    """

    context: jax.Array
    log_probability: jax.Array
    entropy: jax.Array
    sampled: jax.Array


@dataclasses.dataclass(frozen=True)
class CaptioningAttention(Layer):
    """Captioning attention: gated attention of a caption decoder to an image, soft or hard.

        e_ti = vᵀ tanh(W_a a_i + W_h h_{t-1} + b),    α_t = softmax(e_t)
        β_t = σ(w_β · h_{t-1} + b_β)
        soft: z_t = β_t Σ_i α_ti a_i        hard: z_t = β_t a_s, s ~ α_t

    Xu et al. 2015 (arXiv:1502.03044). a_i are the annotations of an image (the flattened pixels of a feature map), h
    the decoder's states. The soft form is `jattn.attention` with `jattn.similarities.Additive`, streamed over
    annotations, for any number of steps at once (one, in a decoder's loop). The paper gates only the soft form; here
    both are gated.

    Args:
        state_features: features of h.
        annotation_features: features of a, and of z.
        features: features of the hidden layer.

    Raises:
        ValueError: a size is below 1; at a call, shapes do not match; as in `jattn.attention`.

    >>> import jax, jax.numpy as jnp
    >>> layer = CaptioningAttention(8, 6, 16)
    >>> parameters = layer.init(jax.random.key(0))
    >>> states, annotations = jnp.ones((2, 5, 8)), jnp.ones((2, 9, 6))
    >>> jax.jit(layer)(parameters, states, annotations).shape
    (2, 5, 6)
    >>> layer.attention_weights(parameters, states, annotations).shape
    (2, 5, 9)
    >>> layer.hard(parameters, states, annotations, jax.random.key(1)).context.shape
    (2, 5, 6)
    """

    own_axes = OWN_AXES

    state_features: int
    annotation_features: int
    features: int

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))

    def parameters(self) -> dict[str, Any]:
        """`state`, `annotation`: kernels to `features`; `vector`, `bias [features]`; `gate`: `kernel`, `bias []`."""
        return {
            "state": kernel(self.state_features, self.features),
            "annotation": kernel(self.annotation_features, self.features),
            "vector": kernel(self.features),
            "bias": bias(self.features),
            "gate": {"kernel": kernel(self.state_features), "bias": bias()},
        }

    def __call__(
        self, parameters: Mapping[str, Any], states: jax.Array, annotations: jax.Array, *, mask: Any = None
    ) -> jax.Array:
        """z of the soft form, `[..., steps, annotation_features]`, in the dtype of the annotations.

        Args:
            parameters: the layer's parameters.
            states: h, `[..., steps, state_features]`.
            annotations: a, `[..., kv_len, annotation_features]`.
            mask: as in `jattn.attention`, such as `jattn.masks.Lengths` for padded annotations.
        """
        query, key, value, similarity = self._arrays(parameters, states, annotations)
        seen = attention(query, key, value, similarity=similarity, mask=mask)[..., 0, :]
        return self._gated(parameters, states, seen)

    def attention_weights(
        self, parameters: Mapping[str, Any], states: jax.Array, annotations: jax.Array, *, mask: Any = None
    ) -> jax.Array:
        """α, `[..., steps, kv_len]`, for `doubly_stochastic_loss`; arguments as in `__call__`."""
        query, key, _, similarity = self._arrays(parameters, states, annotations)
        return attention_weights(query, key, similarity=similarity, mask=mask)[..., 0, :, :]

    def hard(
        self,
        parameters: Mapping[str, Any],
        states: jax.Array,
        annotations: jax.Array,
        key: jax.Array,
        *,
        mask: Any = None,
        soft_rate: float = 0.5,
    ) -> Glimpse:
        """z of the hard form, with what `reinforce_loss` needs.

        Args:
            parameters: the layer's parameters.
            states: h, `[..., steps, state_features]`.
            annotations: a, `[..., kv_len, annotation_features]`.
            key: a random key, for the samples and for which steps do not sample.
            mask: as in `jattn.attention`.
            soft_rate: the probability that a step uses α itself, Σ_i α_i a_i, to reduce the variance of the estimator;
                1/2 in the paper. 1 is the soft form.

        Returns:
            `Glimpse`; 0 for a step that may attend to nothing.

        Raises:
            ValueError: shapes do not match; `key` is not one random key; `soft_rate` is not a number from 0 to 1.
        """
        if isinstance(soft_rate, bool) or not isinstance(soft_rate, (int, float)) or not 0 <= soft_rate <= 1:
            raise ValueError(f"`soft_rate` must be a Python number from 0 to 1; got {soft_rate!r}.")
        check_key("key", key)
        alpha = self.attention_weights(parameters, states, annotations, mask=mask)
        if not alpha.shape[-1]:  # nowhere to look
            steps = states.shape[:-1]
            context, nothing = jnp.zeros((*steps, self.annotation_features), annotations.dtype), jnp.zeros(steps)
            return Glimpse(context, nothing, nothing, jnp.zeros(steps, bool))
        place, coin = jax.random.split(key)
        some = (alpha > 0).any(-1)  # a step that may look nowhere samples nothing
        logs = jnp.where(alpha > 0, jnp.log(jnp.where(alpha > 0, alpha, 1)), -jnp.inf)
        drawn = jax.random.categorical(place, jnp.where(some[..., None], jax.lax.stop_gradient(logs), 0.0), axis=-1)
        sampled = some & ~jax.random.bernoulli(coin, float(soft_rate), drawn.shape)
        chosen = jax.nn.one_hot(drawn, alpha.shape[-1], dtype=alpha.dtype)
        looked = jnp.where((alpha > 0).any(-2)[..., None], annotations, 0).astype(alpha.dtype)  # NaN in padding
        seen = jnp.where(sampled[..., None], chosen, alpha) @ looked
        log_probability = jnp.take_along_axis(logs, drawn[..., None], -1)[..., 0]
        entropy = -(alpha * jnp.where(alpha > 0, logs, 0)).sum(-1)
        context = self._gated(parameters, states, seen.astype(annotations.dtype))
        return Glimpse(context, jnp.where(sampled, log_probability, 0), entropy, sampled)

    def _arrays(self, parameters: Mapping[str, Any], states: Any, annotations: Any) -> tuple[Any, Any, Any, Additive]:
        known = {"state_features": self.state_features, "annotation_features": self.annotation_features}
        check_shapes(
            known,
            states=(states, "... steps state_features"),
            annotations=(annotations, "... kv_len annotation_features"),
        )
        # Queries and keys must have equally many features: pad the narrower ones, and their kernel, with zeros.
        wide = max(self.state_features, self.annotation_features)
        state, annotation = (_widened(parameters[name], wide, -2) for name in ("state", "annotation"))
        similarity = Additive(state, annotation, parameters["vector"], parameters["bias"])
        query, key = (_widened(array, wide, -1)[..., None, :] for array in (states, annotations))
        return query, key, annotations[..., None, :], similarity

    def _gated(self, parameters: Mapping[str, Any], states: jax.Array, seen: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(states)
        gate = parameters["gate"]
        beta = jax.nn.sigmoid(states.astype(dtype) @ gate["kernel"].astype(dtype) + gate["bias"].astype(dtype))
        return (beta[..., None] * seen.astype(dtype)).astype(seen.dtype)


def _widened(array: jax.Array, size: int, axis: int) -> jax.Array:
    room = [(0, 0)] * array.ndim
    room[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, room)


def doubly_stochastic_loss(weights: jax.Array, strength: float = 1.0) -> jax.Array:
    """λ Σ_i (1 - Σ_t α_ti)²: over a caption, the total attention to every annotation should be 1.

    Xu et al. 2015 (arXiv:1502.03044), equation 14.

    Args:
        weights: α, `[..., steps, kv_len]`. Exclude padding: set the weights of padded steps to 0, and slice off padded
            annotations, which would count as never attended to.
        strength: λ.

    Returns:
        `[...]`, float32 (float64).

    Raises:
        ValueError: there are fewer than two axes.

    >>> import jax.numpy as jnp
    >>> print(doubly_stochastic_loss(jnp.eye(3)), doubly_stochastic_loss(jnp.eye(3)[:1]))
    0.0 2.0
    """
    check_shapes(weights=(weights, "... steps kv_len"))
    return strength * jnp.square(1 - weights.astype(accumulation_dtype(weights)).sum(-2)).sum(-1)


def reinforce_loss(
    log_likelihood: jax.Array,
    glimpse: Glimpse,
    baseline: jax.Array,
    *,
    reward_weight: float = 1.0,
    entropy_weight: float = 0.01,
) -> jax.Array:
    """A loss whose gradient is the paper's estimator for hard attention.

        -[ log p(y | s) + λ_r stop(log p(y | s) - b) Σ_t log α_t(s_t) + λ_e Σ_t H(α_t) ]

    Xu et al. 2015 (arXiv:1502.03044), section 4.1. With λ_r = 1, λ_e = 0 and every step sampled, the expected gradient
    is minus that of Σ_s p(s) log p(y | s), for any baseline that does not depend on s; steps that used α itself
    contribute no log α. The value of this loss is meaningless: monitor the log-likelihood instead.

    Args:
        log_likelihood: log p(y | s) of each caption under its samples, `[...]`.
        glimpse: the result of `CaptioningAttention.hard`, each array with a `steps` axis.
        baseline: b, a number or `[...]`, such as from `moving_baseline`.
        reward_weight: λ_r.
        entropy_weight: λ_e.

    Returns:
        `[...]`, one loss for each caption.

    Raises:
        ValueError: shapes do not match; `baseline` is neither one number nor of the shape of `log_likelihood`.

    >>> import jax.numpy as jnp
    >>> none = Glimpse(jnp.zeros((3, 4)), jnp.zeros(3), jnp.zeros(3), jnp.zeros(3, bool))
    >>> print(reinforce_loss(jnp.array(-2.0), none, jnp.array(0.0)))
    2.0
    """
    check_shapes(
        log_likelihood=(log_likelihood, "..."),
        log_probability=(glimpse.log_probability, "... steps"),
        entropy=(glimpse.entropy, "... steps"),
    )
    check_baseline(baseline, "log_likelihood", log_likelihood)
    reward = jax.lax.stop_gradient(log_likelihood - baseline)
    looked = reward_weight * reward * glimpse.log_probability.sum(-1)
    return -(log_likelihood + looked + entropy_weight * glimpse.entropy.sum(-1))


def moving_baseline(baseline: jax.Array, log_likelihood: jax.Array, decay: float = 0.9) -> jax.Array:
    """The next baseline, b = .9 b + .1 mean log p(y | s), without gradient (Xu et al. 2015, arXiv:1502.03044).

    Args:
        baseline: b so far.
        log_likelihood: the log-likelihoods of the captions of a mini-batch, `[...]`.
        decay: .9 in the paper.

    Raises:
        ValueError: `log_likelihood` is empty, or not a floating-point array.

    >>> import jax.numpy as jnp
    >>> print(moving_baseline(jnp.array(0.0), jnp.array([-1.0, -3.0])))
    -0.2
    """
    check_shapes(log_likelihood=(log_likelihood, "..."))
    if not log_likelihood.size:
        raise ValueError(f"`log_likelihood` must be of a caption at least; got shape {log_likelihood.shape}.")
    return jax.lax.stop_gradient(decay * baseline + (1 - decay) * log_likelihood.mean())
