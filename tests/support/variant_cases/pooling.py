"""Rows about sequences summarized by attention."""

import oracle

from jattn.variants.pooling import AttentionPooling

from .row import Row
from .seq2seq import weighed


def _pooled(a, allowed, storage):
    keys = oracle.tanh(oracle.einsum("bkd,de->bke", a["inputs"], a["kernel"]) + a["bias"])
    return weighed(oracle.einsum("bke,qe->bqk", keys, a["query"]), a["inputs"], allowed, storage)


POOLING = [
    Row(
        "attention pooling",
        lambda a, **given: AttentionPooling(3, hidden=4, queries=a["query"].shape[-2])(a, a["inputs"], **given),
        _pooled,
        shapes={"inputs": "bkd", "query": "qe", "kernel": "de", "bias": "e"},
        sizes={"q": 2, "e": 4, "k": 63},
        short=(2, 1),
        rule=lambda q, k: k >= 0,
        stored=("inputs", "query", "kernel", "bias"),
    ),
]
