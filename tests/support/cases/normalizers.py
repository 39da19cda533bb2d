"""Rows about normalizers."""

import numpy as np
import oracle

from jattn import masks, normalizers, scores, similarities

from .case import SLIM, Case, draw, normal, normalizer_row

NORMALIZERS = [
    normalizer_row(
        "softmax with a sink",
        lambda a: normalizers.Softmax(a["sink"]),
        lambda a: oracle.softmax(a["sink"]),
        draw(sink=normal(4)),
        q_heads=4,
    ),
    normalizer_row(
        "softmax with a sink of each query",
        lambda a: normalizers.Softmax(query_sink=a["sink"][..., 0]),
        lambda a: oracle.softmax(a["sink"]),
        draw(sink=normal(2, 2, 37, 1)),
        bfloat16=False,
    ),
    normalizer_row(
        "off by one",
        lambda a: normalizers.Softmax.off_by_one(),
        lambda a: oracle.softmax(np.zeros(1, np.float32)),
        **SLIM,
    ),
    normalizer_row(
        "sigmoid",
        lambda a: normalizers.Sigmoid(a["bias"]),
        lambda a: oracle.sigmoid(a["bias"]),
        draw(bias=normal(2, shift=-2)),
    ),
    normalizer_row("relu", lambda a: normalizers.ReLU(), lambda a: oracle.relu(), vmap=False),
    normalizer_row("sparsemax", lambda a: normalizers.Sparsemax(), lambda a: oracle.sparsemax(), vmap=False),
    normalizer_row("entmax 1.5", lambda a: normalizers.Entmax15(), lambda a: oracle.entmax15()),
    Case(
        "gaussian, alibi, sink, grouped, window",
        lambda a: {
            "similarity": similarities.Gaussian(a["gamma"]),
            "scores": scores.ALiBi(a["slopes"]),
            "normalizer": normalizers.Softmax(a["sink"]),
            "mask": masks.SlidingWindow(15, 0),
        },
        lambda a: {
            "similarity": oracle.gaussian(a["gamma"]),
            "scores": [oracle.alibi(a["slopes"])],
            "normalizer": oracle.softmax(a["sink"]),
            "mask": lambda q, k: (k <= q) & (q - k <= 15),
        },
        draw(gamma=normal(1, scale=0.1, shift=0.5), slopes=normal(4, scale=0.1, shift=0.3), sink=normal(4)),
        q_heads=4,
        mergeable=False,
        v_dim=7,
    ),
]
