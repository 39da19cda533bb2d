"""Rows about scores and windows that are more than a choice of pieces."""

import functools
import importlib
from unittest import mock

import numpy as np
import oracle
from graph import Num

from jattn import scores, similarities
from jattn.variants.windows import (
    AttentionPooling,
    Location,
    LuongGlobal,
    LuongLocal,
    differential,
    hard,
    local_m,
    local_p,
    multi_token,
    talking_heads,
    top_k,
)

from .row import QKV, Row, grouped, scaled, softmax, sums


def _qkv(a):
    return a["query"], a["key"], a["value"]


def _plainly(a, allowed, storage):
    return sums(softmax(scaled(a["query"], a["key"]), allowed), a["value"], storage)


def _near(distance):
    def truth(a, allowed, storage):
        q, k = np.indices(allowed.shape)
        return _plainly(a, allowed & (abs(q - k) <= distance), storage)

    return truth


def _bell(weighed, centers, distance, allowed):
    """softmax of the scores inside of the window, times the Gaussian; centers [b, h or 1, q, 1], distance alike."""
    places = np.arange(weighed.shape[-1]).astype(weighed.value.dtype)
    away = places - centers
    inside = allowed & (abs(away.value) <= distance.value)
    return softmax(weighed, inside) * oracle.exp(away * away * -2 / (distance * distance))


def _local_p(a, allowed, storage):
    centers = oracle.reshape(a["centers"], (*a["centers"].shape, 1))
    distance = oracle.reshape(a["distance"], (-1, 1, 1))
    given = scaled(a["query"], a["key"]) + oracle.reshape(a["bias"], (-1, 1, a["bias"].shape[-1]))
    return sums(_bell(given, centers, distance, allowed), a["value"], storage)


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


def _talking(a, allowed, storage):
    mixed = oracle.einsum("bqid,ih->bqhid", a["query"], a["before"])
    given = oracle.einsum("bqhid,bkid->bhqk", mixed, a["key"]) / np.sqrt(3).astype(mixed.value.dtype)
    given = given + oracle.reshape(a["bias"], (-1, 1, a["bias"].shape[-1]))
    weights = oracle.rounded(softmax(given, allowed), storage)
    each = oracle.rounded(oracle.einsum("bhqk,bkjd->bqhjd", weights, a["value"]), storage)
    return oracle.rounded(oracle.einsum("bqhjd,hj->bqjd", each, a["after"]), storage)


def _differ(a, allowed, storage):
    first, second = (
        _plainly({**a, "query": side(a["query"]), "key": side(a["key"])}, allowed, storage)
        for side in (
            lambda one, start=start: oracle.take(one, np.arange(start, one.shape[2], 2), 2) for start in (0, 1)
        )
    )
    return oracle.rounded(first - oracle.reshape(a["amount"], (-1, 1)) * second, storage)


def _blend(heads, mixture):
    """Within groups, row h of the mixture is what head h becomes."""
    groups, size, _ = mixture.shape
    shape = heads.shape
    apart = oracle.reshape(heads, (shape[0], groups, size, *shape[2:]))
    return oracle.reshape(oracle.einsum("xghqk,gfh->xgfqk", apart, mixture), shape)


def _moved(length, steps):
    """Booleans [step, i, j]: j is so many places before i."""
    i, j = np.indices((length, length))
    return np.stack([i - j == step for step in steps])


def _convolved(a, allowed, storage):
    given = scaled(a["query"], a["key"])
    given = oracle.where(allowed, given, 0)
    _, queries, keys = a["window"].shape
    up = Num(_moved(given.shape[2], range(queries)).astype(given.value.dtype))
    left = Num(_moved(given.shape[3], range(-(keys // 2), keys - keys // 2)).astype(given.value.dtype))
    moved = oracle.einsum("bhajq,tkj->bhatqk", oracle.einsum("bhij,aqi->bhajq", given, up), left)
    convolved = _blend(oracle.einsum("bhatqk,hat->bhqk", moved, a["window"]), a["before"])
    return sums(_blend(softmax(convolved, allowed), a["after"]), a["value"], storage)


def _one_head(array):
    return oracle.reshape(array, (*array.shape[:2], 1, array.shape[-1]))


def _without_head(array):
    return oracle.reshape(array, (*array.shape[:2], array.shape[-1]))


def _weighed(given, sources, allowed, storage):
    """Means of `sources [b, k, d]` by the softmax of scores [b, q, k]."""
    given = oracle.reshape(given, (given.shape[0], 1, *given.shape[1:]))
    return _without_head(sums(softmax(given, allowed), _one_head(sources), storage))


def _location(a, allowed, storage):
    places = oracle.take(a["kernel"], np.arange(allowed.shape[1]), 1)
    return _weighed(oracle.einsum("bqd,dk->bqk", a["states"], places), a["sources"], allowed, storage)


def _pooled(a, allowed, storage):
    keys = oracle.tanh(oracle.einsum("bkd,de->bke", a["inputs"], a["kernel"]) + a["bias"])
    return _weighed(oracle.einsum("bke,qe->bqk", keys, a["query"]), a["inputs"], allowed, storage)


def _joined(context, a, storage):
    """tanh(W [c; h])."""
    size = context.shape[-1]
    halves = [oracle.take(a["out"], np.arange(size) + start, 0) for start in (0, size)]
    both = oracle.einsum("bqd,de->bqe", context, halves[0]) + oracle.einsum("bqd,de->bqe", a["states"], halves[1])
    return oracle.rounded(oracle.tanh(oracle.rounded(both, storage)), storage)


def _luong_global(a, allowed, storage):
    given = oracle.einsum("bqd,bkd->bqk", a["states"], a["sources"])
    return _joined(_weighed(given, a["sources"], allowed, storage), a, storage)


def _luong_local(a, allowed, storage):
    b, q, _ = a["states"].shape
    hidden = oracle.tanh(oracle.einsum("bqd,de->bqe", a["states"], a["hidden"]))
    predicted = oracle.reshape(oracle.einsum("bqe,ef->bqf", hidden, a["vector"]), (b, 1, q, 1))
    lengths = a["lengths"].reshape(-1, 1, 1, 1)
    centers = lengths.astype(predicted.value.dtype) / (1 + oracle.exp(-predicted))
    source = _one_head(a["sources"])
    inside = allowed & (np.arange(allowed.shape[1]) < lengths)
    weights = _bell(scaled(_one_head(a["states"]), source), centers, a["distance"], inside)
    return _joined(_without_head(sums(weights, source, storage)), a, storage)


def _uniform(least, most):
    return lambda rng, shape, sizes: rng.uniform(least, most, shape)


def _lengths(rng, shape, sizes):
    return np.r_[sizes["k"], rng.integers(min(6, sizes["k"]), sizes["k"] + 1, shape)[1:]]


def _small(module, name):
    """Tiles of 16, of which there are several in a row."""
    return functools.partial(mock.patch.object, importlib.import_module(f"jattn.variants.windows.{module}"), name, 16)


WITHOUT = ("mask", "query_positions")  # what takes no implementation

WINDOWS = [
    Row("local-m", lambda a, **given: local_m(*_qkv(a), 4, **given), _near(4)),
    Row(
        "local-p",  # some centers are out of reach of every key
        lambda a, **given: local_p(
            *_qkv(a), a["centers"], a["distance"], scores=scores.Bias(a["bias"][:, None]), **given
        ),
        _local_p,
        shapes={**QKV, "centers": "bhq", "distance": "h", "bias": "hk"},
        draws={"centers": _uniform(-9, 49), "distance": _uniform(2, 6)},
    ),
    Row(
        "top-k",
        lambda a, **given: top_k(*_qkv(a), 5, scores=scores.Bias(a["bias"][:, None]), **given),
        _top_k,
        shapes={**QKV, "bias": "hk"},
        accepts=WITHOUT,
        within=_small("best_keys", "TILE"),
    ),
    Row(
        "hard, straight-through",
        lambda a, **given: hard(*_qkv(a), sample=None, straight_through=True, **given).out,
        _straight_through,
        within=_small("best_keys", "TILE"),
    ),
    Row(
        "hard, log-probability",
        lambda a, **given: hard(*_qkv(a), sample=None, straight_through=False, **given).log_probability,
        _log_probability,
        stays="float32",
        within=_small("best_keys", "TILE"),
    ),
    Row(
        "talking heads",
        lambda a, **given: talking_heads(
            *_qkv(a), a["before"], a["after"], scores=scores.Bias(a["bias"][:, None]), **given
        ),
        _talking,
        shapes={"query": "bqid", "key": "bkid", "value": "bkjv", "before": "ih", "after": "hj", "bias": "hk"},
        sizes={"i": 2, "j": 3},
    ),
    Row(
        "differential",
        lambda a, **given: differential(*_qkv(a), a["amount"], **given),
        _differ,
        shapes={"query": "bqnd", "key": "bkmd", "value": "bkgv", "amount": "h"},
        sizes={"n": 4, "m": 2, "g": 1, "h": 2},
    ),
    Row(
        "multi-token",
        lambda a, **given: multi_token(*_qkv(a), a["window"], before=a["before"], after=a["after"], **given),
        _convolved,
        shapes={**QKV, "window": "hst", "before": "rrr", "after": "ohh"},
        sizes={"s": 3, "t": 4, "r": 2, "o": 1},
        accepts=WITHOUT,
        within=_small("multi_token", "ROWS"),
    ),
    Row(
        "location",
        lambda a, **given: Location(3, 50)({"kernel": a["kernel"]}, a["states"], a["sources"], **given),
        _location,
        shapes={"states": "bqd", "sources": "bkv", "kernel": "dl"},
        sizes={"l": 50},
        stored=("states", "sources", "kernel"),
    ),
    Row(
        "attention pooling",
        lambda a, **given: AttentionPooling(3, hidden=4, queries=2)(a, a["inputs"], **given),
        _pooled,
        shapes={"inputs": "bkd", "query": "qe", "kernel": "de", "bias": "e"},
        sizes={"q": 2, "e": 4, "k": 63},
        short=(2, 1),
        rule=lambda q, k: k >= 0,
        stored=("inputs", "query", "kernel", "bias"),
    ),
    Row(
        "Luong global",
        lambda a, **given: LuongGlobal(3)(
            {"out": {"kernel": a["out"]}}, a["states"], a["sources"], similarity=similarities.Dot(), **given
        ),
        _luong_global,
        shapes={"states": "bqd", "sources": "bkd", "out": "wd"},
        sizes={"w": 6},
        empty=False,
        stored=("states", "sources", "out"),
    ),
    Row(
        "Luong local",
        lambda a, **given: LuongLocal(3, hidden=5)(
            {"position": {"hidden": a["hidden"], "vector": a["vector"]}, "out": {"kernel": a["out"]}},
            a["states"],
            a["sources"],
            a["distance"],
            lengths=a["lengths"],
            **given,
        ),
        _luong_local,
        shapes={
            "states": "bqd",
            "sources": "bkd",
            "hidden": "de",
            "vector": "eo",
            "out": "wd",
            "distance": "",
            "lengths": "b",
        },
        sizes={"e": 5, "o": 1, "w": 6},
        empty=False,
        draws={"distance": _uniform(4, 9), "lengths": _lengths},
        lengths="lengths",
        stored=(),  # a center rounded to bfloat16 is another place
    ),
]
