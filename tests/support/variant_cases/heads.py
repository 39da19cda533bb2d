"""Rows about heads that exchange scores or weights."""

import numpy as np
import oracle
from graph import Num

from jattn import scores
from jattn.variants.heads import differential, multi_token, talking_heads

from .row import QKV, WITHOUT, Row, plainly, qkv, scaled, small_tiles, softmax, sums


def _talking(a, allowed, storage):
    mixed = oracle.einsum("bqid,ih->bqhid", a["query"], a["before"])
    given = oracle.einsum("bqhid,bkid->bhqk", mixed, a["key"]) / np.sqrt(3).astype(mixed.value.dtype)
    given = given + oracle.reshape(a["bias"], (-1, 1, a["bias"].shape[-1]))
    weights = oracle.rounded(softmax(given, allowed), storage)
    each = oracle.rounded(oracle.einsum("bhqk,bkjd->bqhjd", weights, a["value"]), storage)
    return oracle.rounded(oracle.einsum("bqhjd,hj->bqjd", each, a["after"]), storage)


def _differ(a, allowed, storage):
    first, second = (
        plainly({**a, "query": side(a["query"]), "key": side(a["key"])}, allowed, storage)
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
    _, queries, keys = a["filters"].shape
    up = Num(_moved(given.shape[2], range(queries)).astype(given.value.dtype))
    left = Num(_moved(given.shape[3], range(-(keys // 2), keys - keys // 2)).astype(given.value.dtype))
    moved = oracle.einsum("bhajq,tkj->bhatqk", oracle.einsum("bhij,aqi->bhajq", given, up), left)
    convolved = _blend(oracle.einsum("bhatqk,hat->bhqk", moved, a["filters"]), a["before"])
    return sums(_blend(softmax(convolved, allowed), a["after"]), a["value"], storage)


HEADS = [
    Row(
        "talking heads",
        lambda a, **given: talking_heads(
            *qkv(a), a["before"], a["after"], scores=scores.Bias(a["bias"][:, None]), **given
        ),
        _talking,
        shapes={"query": "bqid", "key": "bkid", "value": "bkjv", "before": "ih", "after": "hj", "bias": "hk"},
        sizes={"i": 2, "j": 3},
    ),
    Row(
        "differential",
        lambda a, **given: differential(*qkv(a), a["amount"], **given),
        _differ,
        shapes={"query": "bqnd", "key": "bkmd", "value": "bkgv", "amount": "h"},
        sizes={"n": 4, "m": 2, "g": 1, "h": 2},
    ),
    Row(
        "multi-token",
        lambda a, **given: multi_token(*qkv(a), a["filters"], before=a["before"], after=a["after"], **given),
        _convolved,
        shapes={**QKV, "filters": "hst", "before": "rrr", "after": "ohh"},
        sizes={"s": 3, "t": 4, "r": 2, "o": 1},
        accepts=WITHOUT,
        within=small_tiles("heads.multi_token", "ROWS"),
    ),
]
