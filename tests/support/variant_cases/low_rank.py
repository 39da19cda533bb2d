"""Rows about low rank: lengths, but no masks."""

import numpy as np
import oracle
from graph import Num

from jattn.variants.low_rank import linformer_attention, nystrom_attention

from .row import QKV, Row, grouped, scaled, softmax, sums


def _lengths(rng, shape, sizes):
    return np.r_[sizes["k"], rng.integers(min(6, sizes["k"]), sizes["k"] + 1, shape)[1:]]


def _inside(a, length):
    return np.arange(length) < a["lengths"][:, None]


def _kept(array, inside):
    return array * inside[..., None, None].astype(array.value.dtype)


def _linformer(a, allowed, storage):
    length = a["key"].shape[1]
    key, value = (
        oracle.rounded(
            oracle.einsum(
                "gpk,bkgd->bpgd",
                oracle.take(a[projection], np.arange(length), 2),
                _kept(a[name], _inside(a, length)),
            ),
            storage,
        )
        for name, projection in (("key", "key_projection"), ("value", "value_projection"))
    )
    return sums(softmax(scaled(a["query"], key), np.ones((), bool)), value, storage)


def _largest(sums_of):
    """The largest of the last axis, [b, h] -> [b, h, 1, 1]."""
    one = sums_of.value == sums_of.value.max((-1, -2), keepdims=True)
    first = (one & (one.reshape(*one.shape[:2], -1).cumsum(-1).reshape(one.shape) == 1)).astype(sums_of.value.dtype)
    return oracle.total(sums_of * first, (-1, -2))


def _product(left, right):
    return oracle.einsum("bhij,bhjk->bhik", left, right)


def _inverse(matrix, iterations):
    identity = np.eye(matrix.shape[-1], dtype=matrix.value.dtype)
    turned = Num(matrix.value.swapaxes(-1, -2), (matrix, lambda g: g.swapaxes(-1, -2)))
    found = turned / (_largest(oracle.total(matrix, -1)) * _largest(oracle.total(matrix, -2)))
    for _ in range(iterations):
        both = _product(matrix, found)
        inner = 15 * identity - _product(both, 7 * identity - both)
        found = _product(found, 13 * identity - _product(both, inner)) / 4
    return found


def _nystrom(a, allowed, storage):
    length, landmarks = a["key"].shape[1], 5
    inside = _inside(a, length)
    query, key, value = (_kept(a[name], inside) for name in QKV)
    segments = np.zeros((landmarks, length), bool)
    for index, places in enumerate(np.array_split(np.arange(length), landmarks)):
        segments[index, places] = True
    segments = segments & inside[:, None]
    count = segments.sum(-1)
    used = (count > 0)[:, None]
    mean = Num((segments / np.maximum(count, 1)[..., None]).astype(query.value.dtype))
    queries, keys = (oracle.rounded(oracle.einsum("bml,blhd->bmhd", mean, one), storage) for one in (query, key))
    middle = softmax(scaled(queries, keys), used[..., None, :] & used[..., :, None])
    last = softmax(scaled(queries, key), inside[:, None, None])
    first = softmax(scaled(query, keys), inside[:, None, :, None] & used[..., None, :])
    weights = _product(first, _product(_inverse(middle, 3), last))
    out = oracle.einsum("bhqk,bkhd->bqhd", weights, grouped(value, 4))
    width = a["convolution"].shape[1]
    moved = np.stack([np.eye(length, k=t - width // 2, dtype=query.value.dtype) for t in range(width)])
    spread = oracle.einsum("tqk,bkhd->btqhd", Num(moved), value)
    return oracle.rounded(_kept(out + oracle.einsum("ht,btqhd->bqhd", a["convolution"], spread), inside), storage)


LOW_RANK = [
    Row(
        "Linformer",
        lambda a, **given: linformer_attention(
            *(a[name] for name in QKV), a["key_projection"], a["value_projection"], lengths=a["lengths"], **given
        ),
        _linformer,
        shapes={**QKV, "key_projection": "gpl", "value_projection": "gpl", "lengths": "b"},
        sizes={"q": 41, "k": 63, "p": 5, "l": 70},
        draws={
            "lengths": _lengths,
            **dict.fromkeys(
                ("key_projection", "value_projection"), lambda rng, shape, sizes: rng.normal(size=shape) / 8
            ),
        },
        lengths="lengths",
        empty=False,
        accepts=("implementation",),
    ),
    Row(
        "Nystromformer",
        lambda a: nystrom_attention(
            *(a[name] for name in QKV), 5, iterations=3, convolution=a["convolution"], lengths=a["lengths"]
        ),
        _nystrom,
        shapes={"query": "bkhd", "key": "bkhd", "value": "bkhv", "convolution": "hw", "lengths": "b"},
        sizes={"k": 63, "w": 3},
        draws={"lengths": _lengths},
        short=(7, 7),
        lengths="lengths",
        empty=False,
        accepts=(),
    ),
]
