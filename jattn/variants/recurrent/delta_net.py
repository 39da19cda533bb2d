"""DeltaNet (Yang et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ...foundation.arguments import check_above, check_flags, check_multiple, check_positive
from ...foundation.numerics import widen
from ...layers.layer import kernel
from ...layers.short_convolution import ShortConvolution
from ...ops.recurrence import delta_rule, delta_step
from .layer import RecurrenceInputs, Recurrent, RecurrentState, l2_normalized, to_heads


@dataclasses.dataclass(frozen=True)
class DeltaNet(Recurrent):
    """DeltaNet: a memory in which a token replaces what was stored for its key.

        q, k, v = swish(short(x W_q)), swish(short(x W_k)), swish(short(x W_v)),    β_t = σ(x_t w_β)
        q, k ← q / ‖q‖, k / ‖k‖
        S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,    out_t = norm(S_tᵀ q_t) W_o

    Yang et al. 2024 (arXiv:2406.06484), after Schlag et al. 2021 (arXiv:2102.11174). `short` is a causal convolution of
    each channel with `taps` taps. The norm is the root mean square norm of a head, with a learned scale. Options are
    named as in flash-linear-attention, whose defaults differ: `scale=k_dim**-0.5` and `norm_eps=1e-5`.

    Demonstrated in `examples/experiments/associative_recall_delta.py`.

    Args:
        features: features of inputs and outputs.
        heads: number of query and key heads.
        k_dim: features of a head's keys.
        v_dim: features of a head's values.
        taps: taps of the short convolution.
        num_v_heads: heads of values, β and states, by default `heads`; a multiple of `heads`, with consecutive values
            sharing a query and a key.
        scale: scale of the unit queries. Because outputs are normalized, it matters only relative to `norm_eps`.
        allow_neg_eigval: whether β is twice the sigmoid (Grazzi et al. 2024, arXiv:2411.12537).
        norm_eps: ε of the norm.

    Raises:
        ValueError: a size is below 1; heads do not divide; `allow_neg_eigval` is not a flag; at the call, shapes do not
            match.

    >>> import jax
    >>> layer = DeltaNet(16, 2, 4, 8)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    taps: int = 4
    num_v_heads: int | None = dataclasses.field(default=None, kw_only=True)
    scale: float = dataclasses.field(default=1.0, kw_only=True)
    allow_neg_eigval: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.num_v_heads is None:
            object.__setattr__(self, "num_v_heads", self.heads)
        check_positive(taps=self.taps, num_v_heads=self.num_v_heads)
        check_multiple("heads", num_v_heads=self._memories, heads=self.heads)
        check_above("scale", self.scale, 0)
        check_flags(allow_neg_eigval=self.allow_neg_eigval)

    @property
    def _memories(self) -> int:
        return int(self.num_v_heads or 0)

    @property
    def _key_heads(self) -> int:
        return self.heads

    @property
    def _out_heads(self) -> int:
        return self._memories

    @property
    def _convolution(self) -> ShortConvolution:
        return ShortConvolution(2 * self.heads * self.k_dim + self._memories * self.v_dim, self.taps)

    @property
    def _past(self) -> tuple[int, int]:
        return (self.taps - 1, self._convolution.channels)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `beta`, `convolution` (channels of q, k and v in this order), `norm` and `out`."""
        return {
            **super().parameters(),
            "beta": {"kernel": kernel(self.features, self._memories)},
            "convolution": self._convolution.parameters(),
        }

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        arrays = [to_heads(parameters, name, inputs) for name in ("query", "key", "value")]
        arrays, past = self._convolution.of_heads(parameters["convolution"], arrays, state.past, segment_ids)
        query, key, value = arrays
        beta = jax.nn.sigmoid(widen(inputs @ parameters["beta"]["kernel"])) * (2 if self.allow_neg_eigval else 1)
        query = l2_normalized(query) * self.scale
        return RecurrenceInputs(
            {"query": query, "key": l2_normalized(key), "value": value, "beta": beta}, {}, None, past
        )

    def _whole(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return delta_rule(**arrays, refine=self.allow_neg_eigval)  # else β ‖k‖² is below 1

    def _single(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return delta_step(**arrays)
