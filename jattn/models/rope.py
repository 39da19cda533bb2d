"""Rotary embeddings as configurations describe them: a base, a share of features, and a scaling."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ..foundation.arguments import check_above
from ..foundation.arrays import describe
from ..positions import Linear, Llama3, Proportional, Scaling, YaRN, rotary

SCALINGS: Mapping[str, tuple[type[Scaling], Mapping[str, str]]] = {
    "linear": (Linear, {"factor": "factor"}),
    "llama3": (
        Llama3,
        {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            "original_max_position_embeddings": "original_length",
        },
    ),
    "proportional": (Proportional, {"partial_rotary_factor": "proportion", "factor": "factor"}),
    "yarn": (
        YaRN,
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_length",
            "beta_fast": "fast",
            "beta_slow": "slow",
            "attention_factor": "attention_factor",
            "truncate": "rounded",
            "mscale": "mscale",
            "mscale_all_dim": "mscale_all_dim",
        },
    ),
}
"""For each `rope_type` of `config.json` the scaling, and its fields by key."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """`jattn.positions.rotary` with its options: a function of queries or keys and positions.

    Args:
        base: the base of the frequencies.
        scaling: a scaling of `jattn.positions`.
        share: the share of the features of a head that rotate, above 0 and at most 1.

    Raises:
        ValueError: a value is of another type, or out of its range.

    >>> import jax.numpy as jnp
    >>> Rope(500000.0)(jnp.ones((5, 2, 8)), jnp.arange(5)).shape
    (5, 2, 8)
    """

    base: float = 10000.0
    scaling: Scaling | None = None
    share: float = 1.0

    def __post_init__(self):
        check_above("base", self.base, 1)
        if self.scaling is not None and not isinstance(self.scaling, Scaling):
            raise ValueError(f"`scaling` must be a scaling of `jattn.positions`; got {describe(self.scaling)}.")
        check_above("share", self.share, 0)
        if self.share > 1:
            raise ValueError(f"`share` must be at most 1, all features of a head; got {self.share}.")

    def __call__(self, x: jax.Array, positions: Any) -> jax.Array:
        """The rotated `x [..., length, heads, dim]`."""
        dims = None if self.share == 1 else int(x.shape[-1] * self.share)
        return rotary(x, positions, base=self.base, scaling=self.scaling, dims=dims)

    @classmethod
    def from_json(cls, parameters: Mapping[str, Any], longest: int) -> "Rope":
        """From `rope_parameters` (formerly `rope_theta` and `rope_scaling`) of a `config.json`.

        Args:
            parameters: the parsed JSON.
            longest: `max_position_embeddings`, where the original length is not given.

        Raises:
            ValueError: the type or a key is unknown; a key is missing; a value is no number, or out of its range.

        >>> Rope.from_json({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}, 4096)
        Rope(base=1000000.0, scaling=Linear(factor=2.0), share=1.0)
        """
        if not isinstance(parameters, Mapping):
            raise ValueError(f"`rope_parameters` in config.json must be an object; got {describe(parameters)}.")
        given = {key: value for key, value in parameters.items() if value is not None}
        kind = given.pop("rope_type", given.pop("type", "default"))
        given.pop("type", None)
        base = _number("rope_theta", given.pop("rope_theta", 10000.0), 1)
        share = 1.0
        if kind != "proportional":
            share = _number("partial_rotary_factor", given.pop("partial_rotary_factor", 1.0), 0)
        if kind not in ("default", *SCALINGS):
            raise ValueError(
                f"`rope_type` in config.json must be default, {', '.join(SCALINGS)}; got {kind!r}. Frequencies that "
                "depend on the longest sequence of a call are not supported, as keys in a cache keep those of the call "
                "that made them: for one range of lengths, give "
                "`rope=Rope(base, LongRoPE(..., length=...))` or `DynamicNTK` in a configuration that you write."
            )
        scaling, names = SCALINGS.get(kind, (None, {}))
        if "original_max_position_embeddings" in names:
            given.setdefault("original_max_position_embeddings", longest)
        unknown = sorted(given.keys() - names.keys())
        if unknown:
            raise ValueError(
                f"`rope_parameters` in config.json has {', '.join(unknown)}, which {kind!r} does not know."
            )
        fields = {names[key]: value for key, value in given.items()}
        required = [] if scaling is None else [one.name for one in dataclasses.fields(scaling) if _is_required(one)]  # pyright: ignore
        lacking = [key for key, name in names.items() if name in required and name not in fields]
        if lacking:
            raise ValueError(f"`rope_parameters` in config.json must have {', '.join(lacking)} for {kind!r}.")
        if scaling is YaRN:
            fields["ramp"] = "index"  # as published checkpoints were trained
        return cls(base, None if scaling is None else scaling(**fields), share)

    def to_json(self) -> dict[str, Any]:
        """As `rope_parameters` of a `config.json`.

        Raises:
            ValueError: no `rope_type` describes this scaling.
        """
        parameters: dict[str, Any] = {"rope_theta": self.base}
        if self.share != 1:
            parameters["partial_rotary_factor"] = self.share
        if self.scaling is None:
            return {"rope_type": "default", **parameters}
        for kind, (scaling, names) in SCALINGS.items():
            if isinstance(self.scaling, scaling):
                fields = {key: getattr(self.scaling, name) for key, name in names.items()}
                given = {key: value for key, value in fields.items() if value is not None}
                return {"rope_type": kind, **parameters, **given}
        raise ValueError(f"`scaling` must be one that config.json can describe; got {self.scaling!r}.")


def _number(key: str, value: Any, above: float) -> float:
    """A number of `config.json`, as a float."""
    check_above(key, value, above)
    return float(value)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
