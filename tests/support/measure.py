"""Runs a row of the table: its arrays, the true result, the reference's own error, and the comparison."""

import dataclasses
import functools
from typing import Any

import graph
import jax
import numpy as np
import oracle
from cases import Case

import jattn
from jattn import masks

FORWARD, BACKWARD = 2, 3  # an error may be so many times that of the plain reference of the same dtype
TINY = 32 * float(np.finfo(np.float32).eps)  # and so much more, where the reference happens to be exact


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arrays of one draw of a row, float32 (integers as they are)."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    arrays: dict[str, np.ndarray]
    cotangents: tuple[np.ndarray, ...]

    @property
    def floats(self) -> dict[str, np.ndarray]:
        # By name, as JAX returns dictionaries.
        return {name: value for name, value in sorted(self.arrays.items()) if np.issubdtype(value.dtype, np.floating)}


@functools.lru_cache(maxsize=512)
def draw(case: Case, seed: int, storage: str = "float32") -> Inputs:
    """Random inputs, query, key, value and the output's cotangent rounded to what `storage` can hold."""
    rng = np.random.default_rng(seed)

    def normal(*shape, spread=1.0, dtype=oracle.STORAGE[storage]):
        return (spread * rng.normal(size=shape)).astype(dtype).astype(np.float32)

    rows = (*case.batch, case.q_len, case.q_heads)
    columns = (*case.batch, case.kv_len, case.kv_heads)
    cotangents = (normal(*rows, case.v_dim), normal(*rows, dtype=np.float32))
    return Inputs(
        normal(*rows, case.qk_dim, spread=case.spread),
        normal(*columns, case.qk_dim, spread=case.spread),
        normal(*columns, case.v_dim),
        {name: np.asarray(value) for name, value in case.arrays(rng).items()},
        cotangents if case.mergeable else cotangents[:1],
    )


def poisoned(case: Case, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With NaN and inf in the keys and values that nobody attends."""
    if not case.holes:
        return key, value
    key, value = key.copy(), value.copy()
    for place, (in_key, in_value) in zip(
        range(case.live_keys, case.kv_len), ((np.nan, np.inf), (np.inf, np.nan), (np.nan, -np.inf)), strict=False
    ):
        key[..., place, :, :] = in_key
        value[..., place, :, :] = in_value
    return key, value


def keywords(case: Case, arrays: dict[str, Any]) -> dict[str, Any]:
    """Of `jattn.attention`."""
    given = case.pieces(arrays)
    if case.holes:
        holes = masks.of(lambda q, k: (q != case.hole) & (k < case.live_keys))
        if {"query_positions", "key_positions"} & given.keys():  # the holes are places in the arrays
            rows, columns = np.arange(case.q_len) != case.hole, np.arange(case.kv_len) < case.live_keys
            holes = masks.SameSegment(rows.astype(np.int32), columns.astype(np.int32), padding_id=0)
        mask = given.get("mask")
        given = {**given, "mask": holes if mask is None else masks.as_mask(mask) & holes}
    return given


def call(case: Case, implementation: Any, query: Any, key: Any, value: Any, arrays: dict[str, Any]) -> tuple:
    """(out, lse), or (out,) where the normalizer's partial results do not merge."""
    given = {**keywords(case, arrays), "implementation": implementation}
    if case.mergeable:
        return tuple(jattn.partial_attention(query, key, value, **given))
    return (jattn.attention(query, key, value, **given),)


def everything(case: Case, implementation: Any):
    """A function of (query, key, value, floating-point arrays, other arrays, cotangents): results and gradients."""

    def run(query, key, value, floats, others, cotangents):
        def forward(query, key, value, floats):
            return call(case, implementation, query, key, value, {**others, **floats})

        results, pull = jax.vjp(forward, query, key, value, floats)
        return results, pull(cotangents)

    return run


@functools.lru_cache(maxsize=512)
def truth(case: Case, seed: int, storage: str = "float32", *, plain: bool = False) -> list[np.ndarray]:
    """Results, then gradients of query, key, value and the arrays: in float64, or as the plain reference has them."""
    inputs = draw(case, seed, storage)
    dtype = np.float32 if plain else np.float64
    stored = None if not plain or storage == "float32" else oracle.STORAGE[storage]
    leaves = [oracle.Num(array.astype(dtype)) for array in (inputs.query, inputs.key, inputs.value)]
    floats = {name: oracle.Num(value.astype(dtype)) for name, value in inputs.floats.items()}
    given = case.truth({**inputs.arrays, **floats})
    if case.holes:
        inner = given.get("mask")

        def mask(q, k):
            holes = (np.arange(case.q_len)[:, None] != case.hole) & (np.arange(case.kv_len) < case.live_keys)
            return holes if inner is None else holes & inner(q, k)

        given = {**given, "mask": mask}
    out, lse, _ = oracle.attention(*(oracle.rounded(leaf, stored) for leaf in leaves), **given, storage=stored)
    results = (out, lse)[: len(inputs.cotangents)]
    pairs = [(result, cotangent.astype(dtype)) for result, cotangent in zip(results, inputs.cotangents, strict=True)]
    return [result.value for result in results] + graph.gradients(pairs, [*leaves, *floats.values()])


def names(case: Case, seed: int) -> list[str]:
    inputs = draw(case, seed)
    results = ["out", "lse"][: len(inputs.cotangents)]
    return results + [f"gradient of {name}" for name in ("query", "key", "value", *inputs.floats)]


def compare(case: Case, got: Any, seed: int, storage: str = "float32") -> None:
    """Every result and gradient is as near to the truth as the plain reference, within a factor."""
    found = [np.asarray(leaf).astype(np.float64) for leaf in in_order(got)]
    wanted, plain = truth(case, seed, storage), truth(case, seed, storage, plain=True)
    labels = names(case, seed)
    assert len(found) == len(wanted) == len(labels)
    for label, have, want, rough in zip(labels, found, wanted, plain, strict=True):
        as_near(label, have, want, rough)


def as_near(label: str, have: np.ndarray, want: np.ndarray, rough: np.ndarray) -> None:
    """As near to the truth as the plain reference `rough` is, within the factor of a result or of a gradient."""
    assert have.shape == want.shape, f"{label}: shape {have.shape}, not {want.shape}"
    assert np.array_equal(np.isneginf(have), np.isneginf(want)), f"{label}: -inf elsewhere than in the truth"
    finite = np.isfinite(want)
    assert np.isfinite(have[finite]).all(), f"{label}: not finite"
    factor = BACKWARD if label.startswith("gradient") else FORWARD
    largest = np.abs(want[finite]).max(initial=0)
    allowed = factor * np.abs(rough[finite] - want[finite]).max(initial=0) + TINY * max(1.0, largest)
    error = np.abs(have[finite] - want[finite]).max(initial=0)
    assert error <= allowed, f"{label}: error {error:.3g}, at most {allowed:.3g} (largest value {largest:.3g})"


def in_order(got: Any) -> list[Any]:
    results, (query, key, value, floats) = got
    return [*results, query, key, value, *floats.values()]


def random(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    """Normal float32 arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return [jax.numpy.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]  # converted in NumPy


def exact(query: Any, key: Any, value: Any, **given: Any) -> oracle.Truth:
    """The truth of a call, from arrays of any dtype; `given` as of `oracle.attention`."""
    return oracle.attention(
        *(oracle.Num(np.asarray(array).astype(np.float64)) for array in (query, key, value)), **given
    )


def near(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Equal within a tolerance of the largest value (at least 1)."""
    want = np.asarray(want.value if isinstance(want, oracle.Num) else want)
    largest = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), want, rtol=0, atol=tolerance * largest)
