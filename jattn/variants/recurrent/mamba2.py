"""State space duality: Mamba-2 (Dao & Gu 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_multiple, check_positive, leave_out
from ...foundation.arrays import known_values
from ...foundation.numerics import widen
from ...foundation.shapes import check_shapes
from ...layers.layer import kernel
from ...layers.norms import rms_norm
from ...layers.short_convolution import ShortConvolution
from ...ops.recurrence import linear_recurrence, linear_step
from .decay import log_rate, step_size_bias
from .layer import RecurrenceInputs, Recurrent, RecurrentState, projection, scale, to_heads


def ssd(
    x: jax.Array,
    step_size: jax.Array,
    rate: jax.Array,
    entry: jax.Array,
    readout: jax.Array,
    skip: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """The state space model with scalar decay, as linear attention with keys B, queries C and values Δ x.

        h_t = exp(-Δ_t A) h_{t-1} + Δ_t B_t x_tᵀ,    y_t = h_tᵀ C_t + D x_t

    Dao & Gu 2024 (arXiv:2405.21060). In the paper, A includes the minus sign.

    Args:
        x: `[..., length, heads, dim]`.
        step_size: Δ ≥ 0, `[..., length, heads]`.
        rate: A ≥ 0, `[heads]`.
        entry: B, `[..., length, groups, state_dim]`; consecutive heads share a group.
        readout: C, `[..., length, groups, state_dim]`.
        skip: D, `[heads]`, or None.
        **options: arguments of `jattn.linear_recurrence`, which computes it: `initial_state`, `segment_ids`,
            `implementation`, `chunk`.

    Returns:
        y `[..., length, heads, dim]` in the dtype of x, and the last state `[..., heads, state_dim, dim]`.

    Raises:
        ValueError: shapes do not match; `groups` does not divide the heads; a negative Δ or A, where it is known.

    >>> import jax.numpy as jnp
    >>> x, sizes, shared = jnp.ones((10, 2, 4)), jnp.ones((10, 2)), jnp.ones((10, 1, 3))
    >>> ssd(x, sizes, jnp.ones(2), shared, shared)[0].shape
    (10, 2, 4)
    """
    options = leave_out(options, "the decay is of `step_size` and `rate`, and there is no bonus", "log_decay", "bonus")
    _check(x, step_size, rate, entry, readout, skip, "length ")
    value = step_size[..., None] * x
    out, state = linear_recurrence(readout, entry, value, log_decay=-step_size * rate, **options)
    return (out if skip is None else out + skip[:, None] * x).astype(x.dtype), state


def ssd_step(
    x: jax.Array,
    step_size: jax.Array,
    rate: jax.Array,
    entry: jax.Array,
    readout: jax.Array,
    skip: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One token of `ssd`.

    Args:
        x: `[..., heads, dim]`.
        step_size: Δ ≥ 0, `[..., heads]`.
        rate: A ≥ 0, `[heads]`.
        entry: B, `[..., groups, state_dim]`.
        readout: C, likewise.
        skip: D, `[heads]`, or None.
        state: the state before this token, `[..., heads, state_dim, dim]`, float32; zeros for the first.

    Returns:
        y `[..., heads, dim]` in the dtype of x, and the new state.

    Raises:
        ValueError: as `ssd`; a state of another shape or dtype.

    >>> import jax.numpy as jnp
    >>> x, sizes, shared = jnp.ones((2, 4)), jnp.ones(2), jnp.ones((1, 3))
    >>> ssd_step(x, sizes, jnp.ones(2), shared, shared, None, jnp.zeros((2, 3, 4)))[0].shape
    (2, 4)
    """
    _check(x, step_size, rate, entry, readout, skip, "")
    out, state = linear_step(readout, entry, step_size[..., None] * x, state, log_decay=-step_size * rate)
    return (out if skip is None else out + skip[:, None] * x).astype(x.dtype), state


def _check(x, step_size, rate, entry, readout, skip, length) -> None:
    arrays = {
        "x": (x, f"... {length}heads dim"),
        "step_size": (step_size, f"... {length}heads"),
        "rate": (rate, "heads"),
        "entry": (entry, f"... {length}groups state_dim"),
        "readout": (readout, f"... {length}groups state_dim"),
    }
    sizes = check_shapes(None, **arrays, **({} if skip is None else {"skip": (skip, "heads")}))
    for name, one, remedy in (
        ("step_size", step_size, "A softplus keeps it there."),
        ("rate", rate, "The paper writes A with its minus sign: give `-A`."),
    ):
        known = known_values(one)
        if known is not None and (known < 0).any():
            raise ValueError(f"`{name}` must be at least 0; got values down to {known.min()}. {remedy}")
    heads, groups = sizes["heads"], sizes["groups"]
    check_positive(groups=groups)
    check_multiple("groups", heads=heads, groups=groups)


@dataclasses.dataclass(frozen=True)
class Mamba2(Recurrent):
    """Mamba-2: a state space model (`ssd`) between projections, with a short convolution and a gate.

        x', B, C = swish(short([x W_x, x W_B, x W_C]) + c),    Δ_t = softplus(x_t W_Δ + b)
        out_t = norm(ssd(x', Δ, exp(a), B, C, D)_t ⊙ swish(x_t W_z)) W_o

    Dao & Gu 2024 (arXiv:2405.21060). `short` is a causal convolution of each channel with `taps` taps. B and C are
    shared by the heads of a group. The norm is the root mean square norm of `group_size` channels, by default a head,
    with a learned scale. In the authors' code and Hugging Face's it is a group of heads, `heads * v_dim // groups`,
    with `norm_eps=1e-5`; other ports normalize all channels together, `heads * v_dim`. Initially, exp(a) is between 1
    and 16 and softplus(b) between 0.001 and 0.1, as in the authors' code, so that at first most heads keep at least
    nine tenths of their state at each token.

    Args:
        features: features of inputs and outputs.
        heads: number of heads.
        k_dim: the size of the state, N in the paper.
        v_dim: features of a head, P in the paper.
        groups: groups of heads; `heads` is a multiple of it.
        taps: taps of the short convolution.
        group_size: how many neighboring channels of all heads are normalized together; by default `v_dim`.
        norm_eps: ε of the norm.

    Raises:
        ValueError: a size is below 1; `groups` does not divide the heads, or channels; at the call, shapes do not
            match.

    >>> import jax
    >>> layer = Mamba2(16, 4, 4, 8, groups=2)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    groups: int = 1
    taps: int = 4
    group_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.group_size is None:
            object.__setattr__(self, "group_size", self.v_dim)
        check_positive(groups=self.groups, taps=self.taps, group_size=self.group_size)
        check_multiple("groups", heads=self.heads, groups=self.groups)
        if self.heads * self.v_dim % int(self.group_size or 0):
            raise ValueError(
                f"`group_size` must divide the {self.heads} heads x {self.v_dim} = {self.heads * self.v_dim} channels; "
                f"got {self.group_size}."
            )

    @property
    def _convolution(self) -> ShortConvolution:
        return ShortConvolution(self.heads * self.v_dim + 2 * self.groups * self.k_dim, self.taps, use_bias=True)

    @property
    def _past(self) -> tuple[int, int]:
        return (self.taps - 1, self._convolution.channels)

    def parameters(self) -> dict[str, Any]:
        """`value`, `entry`, `readout`, `convolution`, `swish`, `step_size`, `rate`, `skip`, `norm` and `out`.

        The channels of the convolution are those of `value`, `entry` and `readout`, in this order; the rate is learned
        as its logarithm.
        """
        common = super().parameters()
        return {
            "value": common["value"],
            "entry": projection(self.features, self.groups, self.k_dim),
            "readout": projection(self.features, self.groups, self.k_dim),
            "convolution": self._convolution.parameters(),
            "swish": projection(self.features, self.heads, self.v_dim),
            "step_size": {"kernel": kernel(self.features, self.heads), "bias": step_size_bias(self.heads)},
            "rate": {"log": log_rate(self.heads)},
            "skip": scale(self.heads),
            "norm": common["norm"],
            "out": common["out"],
        }

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        arrays = [to_heads(parameters, name, inputs) for name in ("value", "entry", "readout")]
        arrays, past = self._convolution.of_heads(parameters["convolution"], arrays, state.past, segment_ids)
        x, entry, readout = arrays
        rates = parameters["step_size"]
        sizes = jax.nn.softplus(widen(inputs @ rates["kernel"] + rates["bias"]))
        constants = {"rate": jnp.exp(widen(parameters["rate"]["log"])), "skip": parameters["skip"]["scale"]}
        sequences = {"x": x, "step_size": sizes, "entry": entry, "readout": readout}
        return RecurrenceInputs(sequences, constants, to_heads(parameters, "swish", inputs), past)

    def _whole(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return ssd(**arrays)

    def _single(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return ssd_step(**arrays)

    def _output(self, parameters: Mapping[str, Any], out: jax.Array, gate: jax.Array | None) -> jax.Array:
        return super()._output(parameters, out if gate is None else out * jax.nn.silu(gate), None)

    def _normalized(self, parameters: Mapping[str, Any], out: jax.Array) -> jax.Array:
        scale = parameters["scale"].reshape(-1, int(self.group_size or 0))
        found = rms_norm(out.reshape(*out.shape[:-2], *scale.shape), scale, self.norm_eps)  # of no tokens, too
        return found.reshape(out.shape)
