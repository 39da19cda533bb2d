"""Rows about attention over a memory."""

import numpy as np
import oracle
from graph import Num

from jattn.variants.memory import relative_attention

from .row import QKV, Row, grouped, softmax, sums

FREQUENCIES = 3


def _relative(a, allowed, storage):
    """Content and distance, pair by pair, with a table of all distances."""
    dtype, (q_len, kv_len) = a["query"].value.dtype, allowed.shape
    offsets = np.arange(q_len)[:, None] - np.arange(kv_len)
    angles = offsets[..., None] * 10000.0 ** (-np.arange(FREQUENCIES) / FREQUENCIES)
    table = Num(np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(dtype))
    content = oracle.einsum("bqhd,bkhd->bhqk", a["query"] + a["content"], grouped(a["key"], a["query"].shape[2]))
    along = oracle.einsum("bqhd,fhd->bhqf", a["query"] + a["position"], a["kernel"])
    scores = content + oracle.einsum("bhqf,qkf->bhqk", along, table)
    return sums(softmax(scores / np.sqrt(a["query"].shape[-1]).astype(dtype), allowed), a["value"], storage)


MEMORY = [
    Row(
        "relative attention of Transformer-XL",
        lambda a, **given: relative_attention(
            a["query"],
            a["key"],
            a["value"],
            position_kernel=a["kernel"],
            content_bias=a["content"],
            position_bias=a["position"],
            **given,
        ),
        _relative,
        shapes={**QKV, "kernel": "fhd", "content": "hd", "position": "hd"},
        sizes={"f": 2 * FREQUENCIES},
    ),
]
