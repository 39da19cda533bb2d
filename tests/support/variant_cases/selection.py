"""Rows about queries that attend to their best keys."""

import numpy as np
import oracle
from graph import Num

from jattn import scores
from jattn.variants.selection import hard, top_k

from .row import QKV, WITHOUT, Row, grouped, qkv, scaled, small_tiles, softmax, sums


def _best(given, allowed, count):
    """Booleans: the largest of a row, of equals the earlier, by sorting."""
    kept = np.zeros(given.shape, bool)
    for place in np.ndindex(given.shape[:-1]):
        reachable = np.flatnonzero(allowed[place[-1]])
        for j in sorted(reachable, key=lambda j, row=given.value[place]: (-row[j], j))[:count]:
            kept[(*place, j)] = True
    return kept


def _top_k(a, allowed, storage):
    given = scaled(a["query"], a["key"]) + oracle.reshape(a["bias"], (-1, 1, a["bias"].shape[-1]))
    return sums(softmax(given, _best(given, allowed, 5)), a["value"], storage)


def _straight_through(a, allowed, storage):
    """The likeliest value, with the gradient of the mean of all."""
    given = scaled(a["query"], a["key"])
    soft = sums(softmax(given, allowed), a["value"], None)
    likeliest = np.einsum("bhqk,bkhd->bqhd", _best(given, allowed, 1), grouped(a["value"], 4).value)
    return Num(likeliest, (soft, lambda g: g))


def _log_probability(a, allowed, storage):
    given = scaled(a["query"], a["key"])
    chosen = _best(given, allowed, 1)
    weight = oracle.total(oracle.where(chosen, softmax(given, allowed), 0), -1)
    found = oracle.log(oracle.where(chosen.any(-1, keepdims=True), weight, 1))
    return oracle.einsum("bhqk,k->bqh", found, Num(np.ones(1, found.value.dtype)))


SELECTION = [
    Row(
        "top-k",
        lambda a, **given: top_k(*qkv(a), 5, scores=scores.Bias(a["bias"][:, None]), **given),
        _top_k,
        shapes={**QKV, "bias": "hk"},
        accepts=WITHOUT,
        within=small_tiles("selection.best_keys", "TILE"),
    ),
    Row(
        "hard, straight-through",
        lambda a, **given: hard(*qkv(a), sample=None, straight_through=True, **given).out,
        _straight_through,
        within=small_tiles("selection.best_keys", "TILE"),
    ),
    Row(
        "hard, log-probability",
        lambda a, **given: hard(*qkv(a), sample=None, straight_through=False, **given).log_probability,
        _log_probability,
        stays="float32",
        within=small_tiles("selection.best_keys", "TILE"),
    ),
]
