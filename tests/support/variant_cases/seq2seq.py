"""Rows about the attention of a decoder to its source."""

import numpy as np
import oracle

from jattn import scores, similarities
from jattn.variants.seq2seq import Location, LuongGlobal, LuongLocal, local_m, local_p

from .row import QKV, Row, plainly, qkv, scaled, softmax, sums


def _near(distance):
    def truth(a, allowed, storage):
        q, k = np.indices(allowed.shape)
        return plainly(a, allowed & (abs(q - k) <= distance), storage)

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


def _one_head(array):
    return oracle.reshape(array, (*array.shape[:2], 1, array.shape[-1]))


def _without_head(array):
    return oracle.reshape(array, (*array.shape[:2], array.shape[-1]))


def weighed(given, sources, allowed, storage):
    """Means of `sources [b, k, d]` by the softmax of scores [b, q, k]."""
    given = oracle.reshape(given, (given.shape[0], 1, *given.shape[1:]))
    return _without_head(sums(softmax(given, allowed), _one_head(sources), storage))


def _location(a, allowed, storage):
    places = oracle.take(a["kernel"], np.arange(allowed.shape[1]), 1)
    return weighed(oracle.einsum("bqd,dk->bqk", a["states"], places), a["sources"], allowed, storage)


def _joined(context, a, storage):
    """tanh(W [c; h])."""
    size = context.shape[-1]
    halves = [oracle.take(a["out"], np.arange(size) + start, 0) for start in (0, size)]
    both = oracle.einsum("bqd,de->bqe", context, halves[0]) + oracle.einsum("bqd,de->bqe", a["states"], halves[1])
    return oracle.rounded(oracle.tanh(oracle.rounded(both, storage)), storage)


def _luong_global(a, allowed, storage):
    given = oracle.einsum("bqd,bkd->bqk", a["states"], a["sources"])
    return _joined(weighed(given, a["sources"], allowed, storage), a, storage)


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


SEQ2SEQ = [
    Row("local-m", lambda a, **given: local_m(*qkv(a), 4, **given), _near(4)),
    Row(
        "local-p",  # some centers are out of reach of every key
        lambda a, **given: local_p(
            *qkv(a), a["centers"], a["distance"], scores=scores.Bias(a["bias"][:, None]), **given
        ),
        _local_p,
        shapes={**QKV, "centers": "bhq", "distance": "h", "bias": "hk"},
        draws={"centers": _uniform(-9, 49), "distance": _uniform(2, 6)},
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
