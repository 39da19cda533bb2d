"""Rows about shapes and positions of a call."""

import numpy as np

from jattn import masks

from .case import SLIM, Case, causal, draw

CALLS = [
    Case("plain", holes=False, **SLIM),
    Case("plain with holes", vmap=False),
    Case("causal", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": causal}, holes=False, v_dim=6),
    Case("one query, one key", holes=False, q_len=1, kv_len=1, **SLIM),
    Case(
        "length one, masked", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": causal}, q_len=1, kv_len=1, **SLIM
    ),
    Case("length 63", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": causal}, q_len=63, kv_len=63, **SLIM),
    Case(
        "length 1000",
        lambda a: {"mask": masks.SlidingWindow(100, 0)},
        lambda a: {"mask": lambda q, k: (k <= q) & (q - k <= 100)},
        batch=(1,),
        q_len=1000,
        kv_len=1000,
        tile=(128, 64),
        vmap=False,
    ),
    Case("default tiles", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": causal}, tile=(0, 0), **SLIM),
    Case("more keys than queries", holes=False, q_len=9, kv_len=37, v_dim=3, **SLIM),
    Case("more queries than keys", holes=False, q_len=37, kv_len=5, q_heads=4, **SLIM),
    Case("grouped queries", q_heads=6, kv_heads=2, v_dim=5),
    Case(
        "one key head",
        lambda a: {"mask": masks.Causal()},
        lambda a: {"mask": causal},
        q_heads=4,
        kv_heads=1,
        v_dim=8,
        qk_dim=3,
        holes=False,
        **SLIM,
    ),
    Case(
        "no batch",
        lambda a: {"mask": masks.Causal()},
        lambda a: {"mask": causal},
        batch=(),
        q_heads=4,
        v_dim=1,
        bfloat16=False,
    ),
    Case(
        "two batch axes", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": causal}, batch=(2, 3), bfloat16=False
    ),
    Case(
        "last queries of a cache",
        lambda a: {"mask": masks.Causal(), "query_positions": np.arange(28, 37)},
        lambda a: {"mask": causal, "query_positions": np.arange(28, 37)},
        q_len=9,
        kv_len=37,
        q_heads=4,
        **SLIM,
    ),
    Case(
        "a shard of the keys",
        lambda a: {"mask": masks.Causal(), "query_positions": np.arange(37), "key_positions": np.arange(20, 33)},
        lambda a: {"mask": causal, "query_positions": np.arange(37), "key_positions": np.arange(20, 33)},
        kv_len=13,
        holes=False,
        **SLIM,
    ),
    Case(
        "positions of each sequence, traced",
        lambda a: {"mask": masks.Causal(), "query_positions": a["rows"], "key_positions": a["columns"]},
        lambda a: {"mask": causal, "query_positions": a["rows"], "key_positions": a["columns"]},
        draw(
            rows=lambda rng: rng.integers(0, 40, (2, 1)) + np.arange(11),
            columns=lambda rng: rng.permutation(37)[None],
        ),
        q_len=11,
        holes=False,
        bfloat16=False,
    ),
]
