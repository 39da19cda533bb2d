"""`explain` names the operation of a mask that makes tiles partial, its line, and a remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.foundation.pieces import array, piece
from jattn.masks import Mask
from jattn.ops.attention.implementations import Tiled
from jattn.ops.attention.plan import refine


def explained(mask, length=512):
    one = jax.ShapeDtypeStruct((1, length, 1, 8), "float32")
    return jattn.explain(one, one, one, mask=mask, implementation=Tiled(q_tile=64, k_tile=64))


def assert_names(found, primitive, function, line):
    """The line that is quoted was read from the file at the number that is named."""
    assert re.search(rf"`{primitive}` in `{function}`, test_doubt.py line \d+: `{re.escape(line)}", found), found


def without_a_rule(q, k):
    near = abs(q - k) < 50
    return near & (jax.lax.lgamma(k.astype(jnp.float32)) > 9)


def within_calls(q, k):
    first = jnp.clip(jnp.where(q > k, q, k), 0, 999)
    return looked_up(k) & (first > 3)


@jax.jit
def looked_up(k):
    return jax.lax.lgamma(jnp.clip(k, 0, 9).astype(jnp.float32)) > 3


def together(q, k):
    return (abs(q - k) <= 290) & ((q - k) % 150 == 0)


def lost_without_harm(q, k):
    other = (q % 100 + k % 100 - q % 100) >= -200
    return other & (abs(q - k) <= 290) & ((q - k) % 150 == 0)


def rounded(q, k):
    return (k <= q) & ((q * 0.1 - k * 0.1) != 3.0)


@piece
class Own(Mask):
    """A piece whose line is named too."""

    width: np.ndarray = array("key")

    def allows(self, query, key):
        distance = query % 300 - key % 300
        return (distance == self.width) & (self.width < 3)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (without_a_rule, ("lgamma", "without_a_rule", "return near & (jax.lax.lgamma(")),
        (within_calls, ("lgamma", "looked_up", "return jax.lax.lgamma(")),
        (rounded, ("ne", "rounded", "return (k <= q) & ((q * 0.1")),
    ],
)
def test_what_no_second_look_settles(mask, said):
    found = explained(mask)
    assert found.doubt is not None
    assert found.doubt.startswith("tiles may be visited, or masked, needlessly because of")
    assert_names(found.doubt, *said)
    assert found.doubt in str(found)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (together, ("and", "together", "return (abs(q - k) <= 290)")),
        (lost_without_harm, ("and", "lost_without_harm", "return other & (abs(q - k) <= 290)")),
        (Own(np.arange(512) % 7), ("and", "Own.allows", "return (distance")),
        (jattn.masks.of(together) & jattn.masks.Causal(), ("and", "together", "return (abs(q - k) <= 290)")),
    ],
)
def test_what_is_lost_where_the_budget_does_not_reach(mask, said, monkeypatch):
    assert explained(mask).doubt is None
    monkeypatch.setattr(refine, "BUDGET", 0)
    found = explained(mask).doubt
    assert_names(found, *said)
    assert found is not None
    assert "allow no pair and 0 allow every pair" in found
    assert "Smaller tiles help" in found


@pytest.mark.parametrize("mask", [None, jattn.masks.Causal(), jattn.masks.SlidingWindow(70, 0), lambda q, k: q >= 0])
def test_nothing_is_amiss_where_every_partial_tile_is_one(mask):
    assert explained(mask).doubt is None


def test_of_traced_arrays_what_has_no_rule_is_named():
    found = []

    def trace(ids):
        found.append(explained(jattn.masks.SameSegment(ids) & jattn.masks.of(without_a_rule)))
        found.append(explained(jattn.masks.SameSegment(ids)))
        return ids

    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, 512), "int32"))
    assert_names(found[0].doubt, "lgamma", "without_a_rule", "return near & (jax.lax.lgamma(")
    assert found[1].doubt is None
