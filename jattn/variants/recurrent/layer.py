"""What the layers of this folder share: projections to heads, the state, and the runs over a sequence and a token."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_above, check_multiple, check_positive
from ...foundation.numerics import widen
from ...foundation.shapes import check_shapes
from ...layers.generation import Generative
from ...layers.layer import Parameter, bias, kernel, ones, project
from ...layers.norms import rms_norm
from ...ops.recurrence import linear_recurrence, linear_step
from ...ops.recurrence.arguments import check_segments


class RecurrentState(NamedTuple):
    """The state of a recurrent layer. Its size does not depend on the number of tokens.

    memory: S, `[..., heads, k_dim, v_dim]`, float32 (float64).
    past: the previous tokens that the short convolution or the token shift sees, `[..., taps - 1, channels]`; empty for
    layers with neither.
    position: position of the next token, an integer.
    """

    memory: jax.Array
    past: jax.Array
    position: jax.Array


class RecurrenceInputs(NamedTuple):
    """What the recurrence of a layer takes, computed from the layer's inputs.

    sequences: arrays with a length axis, by the argument names of the recurrence.
    constants: arrays without one.
    gate: the output gate before its activation, `[..., length, heads, v_dim]`; or None.
    past: as in the state.
    """

    sequences: dict[str, jax.Array]
    constants: dict[str, Any]
    gate: jax.Array | None
    past: jax.Array


def projection(features: int, heads: int, dim: int) -> dict[str, Parameter]:
    """`kernel [features, heads, dim]`."""
    return {"kernel": kernel(features, heads, dim)}


def scale(*shape: int) -> dict[str, Parameter]:
    """`scale`, initialized to ones."""
    return {"scale": bias(*shape, init=ones)}


def to_heads(parameters: Mapping[str, Any], name: str, inputs: jax.Array) -> jax.Array:
    """`[..., features]` -> `[..., heads, dim]`."""
    return project(parameters[name], inputs, "...f,fhd->...hd")


def l2_normalized(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """x / √(Σ x² + ε) for each head, computed in float32 at least."""
    wide = widen(x)
    return (wide * jax.lax.rsqrt(jnp.sum(wide**2, -1, keepdims=True) + epsilon)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Recurrent(Generative):
    """A layer whose state is a matrix for each head. Subclasses define `_make`; their own sizes come after these.

    All of them take the keyword `norm_eps`, the ε of the norm before the output.
    """

    features: int
    heads: int
    k_dim: int
    v_dim: int
    norm_eps: float = dataclasses.field(default=1e-6, kw_only=True)

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, k_dim=self.k_dim, v_dim=self.v_dim)
        check_above("norm_eps", self.norm_eps, 0)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `norm` and `out`."""
        return {
            "query": projection(self.features, self.heads, self.k_dim),
            "key": projection(self.features, self._key_heads, self.k_dim),
            "value": projection(self.features, self._memories, self.v_dim),
            "norm": scale(self._out_heads, self.v_dim),
            "out": {"kernel": kernel(self._out_heads, self.v_dim, self.features, inputs=2)},
        }

    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> RecurrentState:
        """The state before the first token: zeros, at position 0."""
        del parameters
        memory = jnp.zeros((*batch, self._memories, self.k_dim, self.v_dim), dtype)
        return RecurrentState(memory, jnp.zeros((*batch, *self._past), dtype), jnp.zeros((), jnp.int32))

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: RecurrentState | None = None,
        *,
        segment_ids: Any = None,
    ) -> tuple[jax.Array, RecurrentState]:
        """As in `Generative`."""
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        check_segments(segment_ids, inputs[..., None])
        before = self.checked(parameters, inputs, inputs.shape[:-2], state)
        made = self._make(parameters, inputs, before, segment_ids)
        options = {"initial_state": None if state is None else before.memory, "segment_ids": segment_ids}
        out, memory = self._whole(**made.sequences, **made.constants, **options)
        return self._output(parameters, out, made.gate), self._state(before, memory, made, length)

    def step(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState
    ) -> tuple[jax.Array, RecurrentState]:
        """As in `Generative`, in time and memory that do not depend on how many tokens came before."""
        check_shapes({"features": self.features}, inputs=(inputs, "... features"))
        axis = inputs.ndim - 1
        before = self.checked(parameters, inputs, inputs.shape[:-1], state)
        made = self._make(parameters, inputs[..., None, :], before, None)
        sequences = {name: jnp.squeeze(one, axis) for name, one in made.sequences.items()}
        out, memory = self._single(**sequences, **made.constants, state=before.memory)
        gate = None if made.gate is None else jnp.squeeze(made.gate, axis)
        return self._output(parameters, out, gate), self._state(before, memory, made, 1)

    @property
    def _memories(self) -> int:
        """The number of matrices in the state."""
        return self.heads

    @property
    def _key_heads(self) -> int:
        """The number of key heads."""
        return self._memories

    @property
    def _out_heads(self) -> int:
        """The number of output heads."""
        return self.heads

    @property
    def _past(self) -> tuple[int, int]:
        """The shape of `RecurrentState.past`."""
        return (0, 0)

    @abc.abstractmethod
    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        """The arguments of the recurrence, for inputs `[..., length, features]` that continue a state."""

    def _whole(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return linear_recurrence(**arrays)

    def _single(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return linear_step(**arrays)

    def _output(self, parameters: Mapping[str, Any], out: jax.Array, gate: jax.Array | None) -> jax.Array:
        heads = self._normalized(parameters["norm"], out)
        if gate is not None:
            heads = self._activation(gate) * heads
        return jnp.einsum("...hd,hdf->...f", heads, parameters["out"]["kernel"])

    def _normalized(self, parameters: Mapping[str, Any], out: jax.Array) -> jax.Array:
        """Normalize `[..., heads, v_dim]`."""
        return rms_norm(out, parameters["scale"], self.norm_eps)

    def _activation(self, gate: jax.Array) -> jax.Array:
        return jax.nn.silu(gate)

    def _state(self, before: RecurrentState, memory: jax.Array, made: RecurrenceInputs, length: int) -> RecurrentState:
        return RecurrentState(memory, made.past.astype(before.past.dtype), before.position + length)


@dataclasses.dataclass(frozen=True)
class Grouped(Recurrent):
    """A recurrent layer in which query heads may share `kv_heads` keys, values, gates and states."""

    kv_heads: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        check_positive(kv_heads=self.kv_heads)
        check_multiple("kv_heads", heads=self.heads, kv_heads=self._memories)

    @property
    def _memories(self) -> int:
        return int(self.kv_heads or 0)
