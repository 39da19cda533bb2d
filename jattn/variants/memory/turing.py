"""The memory of a neural Turing machine (Graves et al. 2014): addressing, reading and writing."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive, check_record
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import Layer, bias, kernel
from ...ops.attention.api import attention_weights
from ...scores import Scale
from ...similarities import Cosine


class Addressing(NamedTuple):
    """The address that each head asks for.

    key: `[..., heads, width]`, compared with every slot.
    strength: β `[..., heads]`, at least 0.
    gate: g `[..., heads]` in [0, 1]: 1 addresses by content, 0 keeps the previous weights.
    shifts: s `[..., heads, 2 reach + 1]`, probabilities of the steps -reach, ..., reach.
    sharpness: γ `[..., heads]`, at least 1.
    """

    key: jax.Array
    strength: jax.Array
    gate: jax.Array
    shifts: jax.Array
    sharpness: jax.Array


def address(memory: jax.Array, previous: jax.Array, addressing: Addressing) -> jax.Array:
    """The weights of each head over the slots.

        content: w_c(i) = softmax_i(β cos(key, M_i))     gate: w_g = g w_c + (1 - g) w_previous
        shift: w_s(i) = Σ_j w_g(j) s(i - j), circular     sharpen: w(i) = w_s(i)^γ / Σ_j w_s(j)^γ

    Graves, Wayne & Danihelka 2014 (arXiv:1410.5401), section 3.3. Content is `jattn.attention_weights` with
    `Cosine()`: a slot of zeros has cosine 0 and finite gradients.

    Args:
        memory: M `[..., slots, width]`.
        previous: weights of the previous step, `[..., heads, slots]`.
        addressing: key, strength, gate, shifts and sharpness of each head.

    Returns:
        `[..., heads, slots]`, float32 (float64 for float64).

    Raises:
        ValueError: shapes do not match; the number of shifts is even, or exceeds the number of slots.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones(1)
    >>> addressing = Addressing(jnp.zeros((1, 2)), one, 0 * one, jnp.array([[0.0, 0.0, 1.0]]), one)  # one step on
    >>> print(address(jnp.zeros((4, 2)), jnp.array([[0.0, 1.0, 0.0, 0.0]]), addressing))
    [[0. 0. 1. 0.]]
    """
    if not isinstance(addressing, Addressing):
        raise ValueError(f"`addressing` must be an `Addressing`; got {type(addressing).__name__}.")
    sizes = check_shapes(
        memory=(memory, "... slots width"),
        previous=(previous, "... heads slots"),
        key=(addressing.key, "... heads width"),
        strength=(addressing.strength, "... heads"),
        gate=(addressing.gate, "... heads"),
        shifts=(addressing.shifts, "... heads shifts"),
        sharpness=(addressing.sharpness, "... heads"),
    )
    if sizes["shifts"] % 2 == 0 or sizes["shifts"] > sizes["slots"]:
        raise ValueError(
            f"`shifts` must be an odd number of steps -reach, ..., reach, at most the {sizes['slots']} slots; got "
            f"{sizes['shifts']}."
        )
    dtype = accumulation_dtype(memory, previous, *addressing)
    content = attention_weights(
        addressing.key[..., None, :, :], memory[..., :, None, :], similarity=Cosine(), scores=Scale(addressing.strength)
    )[..., 0, :]
    gate = addressing.gate.astype(dtype)[..., None]
    gated = gate * content.astype(dtype) + (1 - gate) * previous.astype(dtype)
    reach = sizes["shifts"] // 2
    steps = addressing.shifts.astype(dtype)
    shifted = sum(jnp.roll(gated, step, -1) * steps[..., step + reach, None] for step in range(-reach, reach + 1))
    return sharpen(jnp.asarray(shifted), addressing.sharpness.astype(dtype)[..., None])


def sharpen(weights: jax.Array, sharpness: jax.Array) -> jax.Array:
    """w^γ / Σ w^γ over the last axis; weights of 0 stay 0, with finite gradients, also if all weights are 0.

    Args:
        weights: w `[..., slots]`, nonnegative.
        sharpness: γ, of a shape that broadcasts with the weights.

    Returns:
        The shape of `weights`, summing to 1 unless all are 0.

    >>> import jax.numpy as jnp
    >>> [f"{weight:.2f}" for weight in sharpen(jnp.array([0.75, 0.25, 0.0]), jnp.array(2.0))]
    ['0.90', '0.10', '0.00']
    """
    largest = jax.lax.stop_gradient(weights.max(-1, keepdims=True))
    scaled = weights / jnp.where(largest > 0, largest, 1)  # w^γ of the largest is 1, and cannot vanish
    some = scaled > 0
    # w^γ = w · w^(γ-1): at 0 its derivative is 1 for γ = 1, else 0, without a logarithm of 0.
    factor = jnp.where(some, jnp.exp((sharpness - 1) * jnp.log(jnp.where(some, scaled, 1))), sharpness == 1)
    powers = scaled * factor
    total = powers.sum(-1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1)


def read_slots(memory: jax.Array, weights: jax.Array) -> jax.Array:
    """r = Σ_i w(i) M_i of each head: `[..., slots, width]`, `[..., heads, slots]` -> `[..., heads, width]`.

    Raises:
        ValueError: shapes do not match.

    >>> import jax.numpy as jnp
    >>> print(read_slots(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0.5, 0.5]])))
    [[2. 3.]]
    """
    check_shapes(memory=(memory, "... slots width"), weights=(weights, "... heads slots"))
    return jnp.einsum("...hs,...sw->...hw", weights.astype(accumulation_dtype(memory)), memory).astype(memory.dtype)


def write_slots(memory: jax.Array, weights: jax.Array, erase: jax.Array, add: jax.Array) -> jax.Array:
    """M_i <- M_i ∘ Π_h (1 - w_h(i) e_h) + Σ_h w_h(i) a_h: every head erases, then every head adds.

    Args:
        memory: M `[..., slots, width]`.
        weights: w `[..., heads, slots]`.
        erase: e `[..., heads, width]` in [0, 1].
        add: a `[..., heads, width]`.

    Raises:
        ValueError: shapes do not match.

    >>> import jax.numpy as jnp
    >>> first = jnp.array([[1.0, 0.0]])
    >>> print(write_slots(jnp.ones((2, 2)), first, jnp.array([[1.0, 0.5]]), jnp.array([[3.0, 3.0]])))
    [[3.  3.5]
     [1.  1. ]]
    """
    check_shapes(
        memory=(memory, "... slots width"),
        weights=(weights, "... heads slots"),
        erase=(erase, "... heads width"),
        add=(add, "... heads width"),
    )
    kept = (1 - weights[..., :, :, None] * erase[..., :, None, :]).prod(-3)
    return (memory * kept + jnp.einsum("...hs,...hw->...sw", weights, add)).astype(memory.dtype)


class TuringState(NamedTuple):
    """The memory `[..., slots, width]`, and the weights of read heads and write heads `[..., heads, slots]`."""

    memory: jax.Array
    reading: jax.Array
    writing: jax.Array


@dataclasses.dataclass(frozen=True)
class TuringMemory(Layer):
    """Neural Turing machine: one memory step driven by a controller, which first writes and then reads.

        w' = address(M, w, addressing),    M' = write_slots(M, w', e, a)         for all write heads
        r' = address(M', r, addressing),   read = read_slots(M', r')             then for all read heads

    Graves et al. 2014 (arXiv:1410.5401). M is the memory, w and r are the weights of the heads. A projection of the
    controller's state makes the `Addressing` of each head (β by a softplus, g by a sigmoid, s by a softmax, γ by 1 +
    softplus), and for write heads e, by a sigmoid, and a.

    Args:
        features: features of the controller's state.
        slots: number of memory slots.
        width: width of a slot.
        heads: number of read heads, and of write heads.
        reach: how far a head may shift in one step.

    Raises:
        ValueError: a size is below 1; there are more shifts than slots; at the call, shapes do not match.

    >>> import jax
    >>> layer = TuringMemory(8, slots=16, width=4)
    >>> read, state = jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((2, 8)), layer.begin((2,)))
    >>> read.shape, state.memory.shape
    ((2, 1, 4), (2, 16, 4))
    """

    own_axes: ClassVar[Mapping[str, str]] = {"__call__": "features"}

    features: int
    slots: int
    width: int
    heads: int = 1
    reach: int = 1

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))
        if 2 * self.reach + 1 > self.slots:
            raise ValueError(f"`slots` must be at least 2 `reach` + 1; got {self.slots} and reach {self.reach}.")

    def parameters(self) -> dict[str, Any]:
        """`read` and `write`, a `kernel [features, heads, numbers]` and `bias [heads, numbers]` each."""
        numbers = self.width + 2 * self.reach + 4

        def projection(numbers: int) -> dict[str, Any]:
            return {"kernel": kernel(self.features, self.heads, numbers), "bias": bias(self.heads, numbers)}

        return {"read": projection(numbers), "write": projection(numbers + 2 * self.width)}

    def begin(self, batch: tuple[int, ...] = (), dtype: Any = jnp.float32) -> TuringState:
        """A memory of zeros of this dtype, with all heads at the first slot (in float32, or float64)."""
        wide = accumulation_dtype(dtype)
        first = jnp.zeros((*batch, self.heads, self.slots), wide).at[..., 0].set(1)
        return TuringState(jnp.zeros((*batch, self.slots, self.width), dtype), first, first)

    def __call__(
        self, parameters: Mapping[str, Any], controller: jax.Array, state: TuringState
    ) -> tuple[jax.Array, TuringState]:
        """`(read [..., heads, width], new state)`, from the controller's state `[..., features]`."""
        check_record("state", state, TuringState)
        check_shapes(
            dataclasses.asdict(self),
            controller=(controller, "... features"),
            memory=(state.memory, "... slots width"),
            reading=(state.reading, "... heads slots"),
            writing=(state.writing, "... heads slots"),
        )
        addressing, (erase, add) = self._addressing(parameters["write"], controller)
        writing = address(state.memory, state.writing, addressing)
        memory = write_slots(state.memory, writing, jax.nn.sigmoid(erase), add)
        addressing, _ = self._addressing(parameters["read"], controller)
        reading = address(memory, state.reading, addressing)
        return read_slots(memory, reading), TuringState(memory, reading, writing)

    def _addressing(self, projection: Mapping[str, Any], controller: jax.Array) -> tuple[Addressing, tuple]:
        made = jnp.einsum("...f,fhn->...hn", controller, projection["kernel"]) + projection["bias"]
        key, made = made[..., : self.width], made[..., self.width :]
        strength, gate, sharpness = (made[..., n] for n in range(3))
        shifts, rest = jnp.split(made[..., 3:], [2 * self.reach + 1], -1)
        addressing = Addressing(
            key,
            jax.nn.softplus(strength),
            jax.nn.sigmoid(gate),
            jax.nn.softmax(shifts, -1),
            1 + jax.nn.softplus(sharpness),
        )
        return addressing, tuple(jnp.split(rest, 2, -1)) if rest.shape[-1] else ()
