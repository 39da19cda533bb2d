"""How much each head matters, and gates that close heads.

A gate ξ_h multiplies the output of a head: Σ_h ξ_h A_h V_h W_O,h. With ξ = 1, the gradient of a loss is

    ∂L/∂ξ_h = Σ_i ⟨o_hi, ∂L/∂o_hi⟩ = Σ_ij A_hij ∂L/∂A_hij        o = A V

so a recording with gradients is enough to know it, and no model needs gates.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_key
from ..foundation.arrays import as_array, describe, dtype_of
from .rows import checked

TEMPERATURE, LOW, HIGH = 0.33, -0.1, 1.1
"""Of the hard concrete distribution (Voita et al. 2019)."""


def gate_gradients(weights: Any, gradients: Any, where: Any = None) -> jax.Array:
    """∂L/∂ξ_h of each example: Σ_ij A_ij ∂L/∂A_ij, `[..., heads]`.

    Args:
        weights: A `[..., heads, queries, keys]`, as `jattn.recorded(function, gradients=True)` records them.
        gradients: ∂L/∂A, of the same shape.
        where: booleans that broadcast with `weights`: pairs that count.

    Raises:
        ValueError: shapes do not match.
    """
    weights, _ = checked(weights, where)
    if np.shape(gradients) != weights.shape:
        raise ValueError(
            f"`gradients` must have the shape {weights.shape} of `weights`, as `jattn.recorded(..., gradients=True)` "
            f"records them; got {describe(gradients)}."
        )
    gradients = jnp.asarray(gradients, jnp.float32)
    gradients = gradients if where is None else jnp.where(where, gradients, 0)
    return jnp.einsum("...qk,...qk->...", weights, gradients, precision="highest")


def head_importance(weights: Any, gradients: Any, where: Any = None) -> jax.Array:
    """E_x |∂L(x)/∂ξ_h|, `[heads]`: how sensitive the loss is to the gate of each head, on average over examples x.

    Michel et al. 2019 (arXiv:1905.10650). The loss is to be a sum or mean of the losses of the examples.

    Args:
        weights, gradients, where: as in `gate_gradients`.

    >>> import jax, jattn
    >>> from jattn import analysis
    >>> x = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    >>> _, seen = jattn.recorded(lambda x: (jattn.attention(x, x, x)[..., :2, :] ** 2).sum(), gradients=True)(x)
    >>> found = analysis.head_importance(seen["attention.0"], seen.gradients["attention.0"])
    >>> (found > 0).tolist()  # the loss does not depend on the last head
    [True, True, False]
    """
    found = jnp.abs(gate_gradients(weights, gradients, where))
    axes = tuple(range(found.ndim - 1))
    return found.sum(axes) / max(math.prod(found.shape[:-1]), 1)


def rank_heads(importance: Mapping[str, Any], *, normalize: bool = True) -> list[tuple[str, int]]:
    """All heads, the least important first: the order to prune them in.

    Args:
        importance: for each layer `[heads]`.
        normalize: divide those of a layer by their length (Michel et al. 2019), as gradients of layers differ in size.

    >>> rank_heads({"a": [3.0, 4.0], "b": [0.5, 0.1]})
    [('b', 1), ('a', 0), ('a', 1), ('b', 0)]
    """
    if not isinstance(importance, Mapping):
        raise ValueError(f"`importance` must be a mapping from layers to [heads]; got {describe(importance)}.")
    found = []
    for name, heads in importance.items():
        if dtype_of(as_array(heads)) is None:
            raise ValueError(f"`importance[{name!r}]` must be finite numbers [heads]; got {describe(heads)}.")
        values = np.asarray(heads, np.float64)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(f"`importance[{name!r}]` must be finite numbers [heads]; got {describe(heads)}.")
        values = values / max(np.linalg.norm(values), 1e-300) if normalize else values
        found += [(value, name, head) for head, value in enumerate(values)]
    return [(name, head) for _, name, head in sorted(found, key=lambda one: one[0])]


def pruned(
    loss: Callable[[dict[str, np.ndarray]], Any], order: Sequence[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int] | None, float]]:
    """The loss as heads are closed one after another.

    Args:
        loss: a function of the gates, for each layer `[heads]` of ones and zeros.
        order: all heads, in the order to close them in, as `rank_heads` gives it.

    Returns:
        An iterator over pairs: the head that was just closed (None at first), and the loss.

    Raises:
        ValueError: `order` lacks or repeats a head; `loss` does not return a number.

    >>> for head, value in pruned(lambda gates: gates["a"] @ [1.0, 10.0], [("a", 0), ("a", 1)]):
    ...     print(head, value)
    None 11.0
    ('a', 0) 10.0
    ('a', 1) 0.0
    """
    if not callable(loss):
        raise ValueError(f"`loss` must be a function of gates; got {describe(loss)}.")
    sizes: dict[str, int] = {}
    order = [tuple(one) if isinstance(one, tuple | list) else one for one in order]  # type: ignore[misc]
    if not all(isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], int | np.integer) for one in order):
        raise ValueError(f"`order` must be of (layer, head), as `rank_heads` gives it; got {describe(order)}.")
    for name, head in order:
        sizes[name] = max(sizes.get(name, 0), head + 1)
    if len(set(order)) != len(order) or sum(sizes.values()) != len(order):
        raise ValueError(f"`order` must have every head of every layer once; got {list(order)}.")
    gates = {name: np.ones(size, np.float32) for name, size in sizes.items()}

    def value() -> float:
        found = loss(dict(gates))
        if np.shape(found) != ():
            raise ValueError(f"`loss` must return a number; got {describe(found)}.")
        return float(found)

    yield None, value()
    for name, head in order:
        closed = gates[name].copy()
        closed[head] = 0
        gates[name] = closed
        yield (name, head), value()


def gate_outputs(output: Any, gates: Any) -> jax.Array:
    """The output projection of gated heads, ξ_h W_O,h: an attention layer with it computes Σ_h ξ_h A_h V_h W_O,h.

    Args:
        output: W_O `[heads, head_dim, features]`, such as `MultiHeadAttention.out.kernel` of `jattn.nnx`.
        gates: `[heads]`.

    Raises:
        ValueError: the numbers of heads differ.

    >>> gate_outputs(jnp.ones((2, 1, 3)), [1.0, 0.0]).tolist()
    [[[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    shape = np.shape(output)
    if len(shape) != 3 or np.shape(gates) != shape[:1]:
        raise ValueError(
            "`output` must be [heads, head_dim, features] and `gates` [heads]; got "
            f"{describe(output)} and {describe(gates)}."
        )
    return jnp.asarray(output) * jnp.asarray(gates)[:, None, None]


def hard_concrete(key: jax.Array, log_alpha: Any) -> jax.Array:
    """Gates drawn between 0 and 1, of which many are exactly 0 or 1, with gradients into `log_alpha`.

        ξ = clip(s (h - l) + l, 0, 1),  s = σ((log u - log(1 - u) + log α) / T),  u ~ U(0, 1)

    with T = .33, l = -.1, h = 1.1.

    Louizos et al. 2018 (arXiv:1712.01312), as Voita et al. 2019 (arXiv:1905.09418) prune heads: train `log_alpha` on
    the loss plus a penalty on `open_probability`, and close the heads whose `settled_gates` are 0.

    Args:
        key: a random key.
        log_alpha: one number for each gate, of any shape.
    """
    check_key("key", key)
    log_alpha = _numbers(log_alpha)
    noise = jax.random.logistic(key, log_alpha.shape, log_alpha.dtype)
    return _stretched(jax.nn.sigmoid((noise + log_alpha) / TEMPERATURE))


def settled_gates(log_alpha: Any) -> jax.Array:
    """The gates to use after training: clip(σ(log α) (h - l) + l, 0, 1).

    >>> print(settled_gates([-3.0, 0.0, 3.0]))
    [0.  0.5 1. ]
    """
    return _stretched(jax.nn.sigmoid(_numbers(log_alpha)))


def open_probability(log_alpha: Any) -> jax.Array:
    """P(ξ > 0) = σ(log α - T log(-l / h)), whose sum is the expected number of open heads.

    >>> [round(float(one), 3) for one in open_probability([-3.0, 3.0])]
    [0.099, 0.978]
    """
    return jax.nn.sigmoid(_numbers(log_alpha) - TEMPERATURE * np.log(-LOW / HIGH))


def _numbers(log_alpha: Any) -> jax.Array:
    """`log_alpha` in float32.

    Raises:
        ValueError: it is not of numbers.
    """
    array = np.asarray(log_alpha) if isinstance(log_alpha, int | float) else as_array(log_alpha)
    if dtype_of(array) is None:
        raise ValueError(f"`log_alpha` must be numbers, one for each gate; got {describe(log_alpha)}.")
    return jnp.asarray(array, jnp.float32)


def _stretched(s: jax.Array) -> jax.Array:
    return jnp.clip(s * (HIGH - LOW) + LOW, 0, 1)
