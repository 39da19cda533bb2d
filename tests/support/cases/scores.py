"""Rows about similarities and scores."""

import numpy as np
import oracle

from jattn import masks, scores, similarities

from .case import SLIM, Case, causal, draw, normal, score_row, similarity_row

SIMILARITIES = [
    similarity_row("dot", lambda a: similarities.Dot(0.3), lambda a: oracle.dot(0.3), **SLIM),
    similarity_row(
        "dot, a scale per head",
        lambda a: similarities.Dot(a["scale"]),
        lambda a: oracle.dot(a["scale"]),
        draw(scale=normal(2)),
    ),
    similarity_row(
        "cosine",
        lambda a: similarities.Cosine(a["temperature"]),
        lambda a: oracle.cosine(a["temperature"]),
        draw(temperature=lambda rng: rng.uniform(0.2, 1, (4,)).astype(np.float32)),
        q_heads=4,
    ),
    similarity_row(
        "bilinear",
        lambda a: similarities.Bilinear(a["weight"]),
        lambda a: oracle.bilinear(a["weight"]),
        draw(weight=normal(2, 4, 4, scale=0.5)),
    ),
    similarity_row(
        "shared bilinear",
        lambda a: similarities.SharedBilinear(a["weight"]),
        lambda a: oracle.shared_bilinear(a["weight"]),
        draw(weight=normal(4, 5, scale=0.4)),
        **SLIM,
    ),
    similarity_row(
        "relative dot, of Shaw",
        lambda a: similarities.RelativeDot(a["distances"], first=-3),
        lambda a: oracle.relative_dot(a["distances"], -3),
        draw(distances=normal(2, 6, 4)),
    ),
    similarity_row(
        "relative dot, with both biases",
        lambda a: similarities.RelativeDot(a["distances"], -36, a["u"], a["v"]),
        lambda a: oracle.relative_dot(a["distances"], -36, a["u"], a["v"]),
        draw(distances=normal(4, 37, 4), u=normal(4, 4), v=normal(4, 4)),
        q_heads=4,
        **SLIM,
    ),
    similarity_row(
        "gaussian",
        lambda a: similarities.Gaussian(a["gamma"]),
        lambda a: oracle.gaussian(a["gamma"]),
        draw(gamma=lambda rng: rng.uniform(0.1, 1, (4,)).astype(np.float32)),
        q_heads=4,
    ),
    similarity_row(
        "additive",
        lambda a: similarities.Additive(a["query_weight"], a["key_weight"], a["vector"]),
        lambda a: oracle.additive(a["query_weight"], a["key_weight"], a["vector"]),
        draw(query_weight=normal(4, 5), key_weight=normal(4, 5), vector=normal(5)),
        q_heads=4,
    ),
]

SCORES = [
    score_row(
        "bias", lambda a: scores.Bias(a["bias"]), lambda a: [oracle.bias(a["bias"])], draw(bias=normal(2, 2, 37, 37))
    ),
    score_row(
        "bias of queries and of keys",
        lambda a: [scores.Bias(a["rows"]), scores.Bias(a["columns"])],
        lambda a: [oracle.bias(a["rows"]), oracle.bias(a["columns"])],
        draw(rows=normal(4, 37, 1), columns=normal(1, 1, 37)),
        q_heads=4,
        bfloat16=False,
    ),
    score_row(
        "alibi",
        lambda a: scores.ALiBi(a["slopes"]),
        lambda a: [oracle.alibi(a["slopes"])],
        draw(slopes=lambda rng: rng.uniform(0.05, 0.5, (4,)).astype(np.float32)),
        q_heads=4,
    ),
    score_row(
        "relative buckets",
        lambda a: scores.RelativeBuckets(a["table"], max_distance=20),
        lambda a: [oracle.relative_buckets(a["table"], max_distance=20)],
        draw(table=normal(12, 2)),
    ),
    score_row(
        "relative buckets of the past",
        lambda a: scores.RelativeBuckets(a["table"], bidirectional=False, max_distance=20),
        lambda a: [oracle.relative_buckets(a["table"], bidirectional=False, max_distance=20)],
        draw(table=normal(10, 2)),
        **SLIM,
    ),
    score_row(
        "relative logits of queries",
        lambda a: scores.RelativeLogits(a["logits"], first=-4),
        lambda a: [oracle.relative_logits(a["logits"], -4)],
        draw(logits=normal(2, 2, 37, 9)),
    ),
    score_row(
        "relative logits from a table, of coordinates",
        lambda a: scores.RelativeLogits(a["table"], -2, a["at"]),
        lambda a: [oracle.relative_logits(a["table"], -2, a["at"])],
        draw(table=normal(2, 1, 6), at=lambda rng: rng.integers(0, 9, (2, 37)).astype(np.int32)),
        **SLIM,
    ),
    score_row(
        "a table of the offsets in a grid",
        lambda a: scores.RelativeGrid(a["table"], (5, 7)),
        lambda a: [oracle.relative_grid(a["table"], 5, 7)],
        draw(table=normal(9 * 13, 2)),
        **SLIM,
    ),
    score_row(
        "forget",
        lambda a: scores.Forget.of(a["log_gates"]),
        lambda a: [oracle.forget(a["log_gates"])],
        draw(log_gates=lambda rng: -rng.exponential(size=(2, 4, 37)).astype(np.float32)),
        q_heads=4,
    ),
    Case(
        "a window and a Gaussian around centers",
        lambda a: {
            "mask": masks.Near(a["centers"], a["distance"]),
            "scores": scores.GaussianWindow(a["centers"], a["distance"]),
        },
        lambda a: {
            "mask": lambda q, k: abs(k - a["centers"].value[..., None]) <= a["distance"].value[:, None, None],
            "scores": [oracle.gaussian_window(a["centers"], a["distance"])],
        },
        draw(
            centers=lambda rng: rng.uniform(-3, 40, (2, 2, 37)).astype(np.float32),
            distance=lambda rng: rng.uniform(3, 9, 2).astype(np.float32),
        ),
    ),
    score_row("soft cap", lambda a: scores.SoftCap(1.5), lambda a: [oracle.soft_cap(1.5)], spread=1.5, vmap=False),
    Case(
        "bias, then soft cap, then alibi, causal",
        lambda a: {
            "scores": [scores.Bias(a["bias"]), scores.SoftCap(2.0), scores.ALiBi(a["slopes"])],
            "mask": masks.Causal(),
        },
        lambda a: {
            "scores": [oracle.bias(a["bias"]), oracle.soft_cap(2.0), oracle.alibi(a["slopes"])],
            "mask": causal,
        },
        draw(bias=normal(1, 37, 37), slopes=normal(2, scale=0.1, shift=0.3)),
    ),
    score_row(
        "a function over an array",
        lambda a: scores.of(lambda s, q, k: s * a["gain"] - 0.1 * abs(q - k)),
        lambda a: [lambda s, q, k: s * a["gain"] - 0.1 * abs(q - k).astype(s.value.dtype)],
        draw(gain=lambda rng: np.asarray(rng.uniform(0.5, 2), np.float32)),
        bfloat16=False,
    ),
]
