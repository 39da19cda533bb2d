"""Rows about functions that gather what a sparse pattern scatters."""

import numpy as np
import oracle

from jattn.variants.sparse import fixed_attention, shared_prefix_attention, strided_attention

from .row import QKV, Row, scaled, softmax, sums

SELF = {"accepts": ("mask", "implementation"), "refused": "`key` must have shape .* with length = 5"}


WAYS = ("merged", None), ("split", None), ("interleaved", 0), ("interleaved", 1)


def _pattern(near, far, way, layer):
    """Softmax over both parts, or over each on its half of the heads or in its layers."""

    def truth(a, allowed, storage):
        q, k = np.indices(allowed.shape)
        first, second = near(q, k) & allowed, far(q, k) & allowed
        heads = a["query"].shape[2]
        split = np.stack([first] * (heads // 2) + [second] * (heads // 2))
        pairs = {"merged": first | second, "split": split, "interleaved": second if layer else first}[way]
        return sums(softmax(scaled(a["query"], a["key"]), pairs), a["value"], storage)

    return truth


def _strided(way, layer):
    # 63 positions in 9 rows of 7 columns: bringing columns together is no involution, as it would be in rows of 8.
    return Row(
        f"strided, {way}{'' if layer is None else f' {layer}'}",
        lambda a, **given: strided_attention(a["query"], a["key"], a["value"], 7, way, layer=layer, **given),
        _pattern(lambda q, k: (k <= q) & (q - k < 7), lambda q, k: (k <= q) & ((q - k) % 7 == 0), way, layer),
        **SELF,
    )


def _fixed(way, layer):
    return Row(
        f"fixed, {way}{'' if layer is None else f' {layer}'}",
        lambda a, **given: fixed_attention(a["query"], a["key"], a["value"], 10, 3, way, layer=layer, **given),
        _pattern(lambda q, k: (k <= q) & (q // 10 == k // 10), lambda q, k: (k <= q) & (k % 10 >= 7), way, layer),
        **SELF,
    )


def _shared_prefix(a, allowed, storage):
    """Each continuation over a row of the prefix and of its own keys; the prefix is seen by every query."""
    count = a["query"].shape[1]
    query, key, value = (oracle.reshape(a[name], (-1, *a[name].shape[2:])) for name in ("query", "key", "value"))
    of_each = np.repeat(np.arange(len(a["prefix_key"].value)), count)
    prefix_key, prefix_value = (oracle.take(a[name], of_each, 0) for name in ("prefix_key", "prefix_value"))
    masses = oracle.where(allowed, oracle.exp(scaled(query, key)), 0), oracle.exp(scaled(query, prefix_key))
    whole = oracle.total(masses[0], -1) + oracle.total(masses[1], -1)
    own, shared = (sums(mass / whole, one, storage) for mass, one in zip(masses, (value, prefix_value), strict=True))
    out = oracle.rounded(own + shared, storage)
    return oracle.reshape(out, (-1, count, *out.shape[1:]))


SPARSE = [
    *(make(*way) for make in (_strided, _fixed) for way in WAYS),
    Row(
        "shared prefix",
        lambda a, **given: shared_prefix_attention(
            *(a[name] for name in (*QKV, "prefix_key", "prefix_value")), **given
        ),
        _shared_prefix,
        shapes={"query": "bcqhd", "key": "bckgd", "value": "bckgv", "prefix_key": "bpgd", "prefix_value": "bpgv"},
        sizes={"c": 3, "q": 11, "k": 9, "p": 63},
        empty=False,
        stored=("query", "key", "value", "prefix_key", "prefix_value"),
    ),
]
