"""Looking inside attention: maps from any source, and what their heads do."""

from .alignment import Word, align, alignment_error_rate, time_warp, word_times
from .contributions import effective_attention, norms, value_zeroing
from .describing import Head, Heads, describe
from .distances import distances, embedding, head_distances
from .flow import attention_flow, cross_gradient_attention, gradient_attention, rollout, with_residual
from .importance import (
    gate_gradients,
    gate_outputs,
    hard_concrete,
    head_importance,
    open_probability,
    pruned,
    rank_heads,
    settled_gates,
)
from .maps import Layer, Maps
from .measures import (
    confidence,
    entropy,
    mass_on,
    mean_distance,
    offset_histogram,
    sink_rate,
    sink_score,
    token_kinds,
)
from .pairs import (
    Pairs,
    best_offset,
    coreference_pairs,
    dependency_pairs,
    labeled_pairs,
    merge_pieces,
    pair_accuracy,
)
from .patterns import (
    PATTERNS,
    chance,
    copying,
    has_choice,
    pattern,
    pattern_share,
    prefix_matching,
    repeated_tokens,
)
from .reading import read

__all__ = [
    "PATTERNS",
    "Head",
    "Heads",
    "Layer",
    "Maps",
    "Pairs",
    "Word",
    "align",
    "alignment_error_rate",
    "attention_flow",
    "best_offset",
    "chance",
    "confidence",
    "copying",
    "coreference_pairs",
    "cross_gradient_attention",
    "dependency_pairs",
    "describe",
    "distances",
    "effective_attention",
    "embedding",
    "entropy",
    "gate_gradients",
    "gate_outputs",
    "gradient_attention",
    "hard_concrete",
    "has_choice",
    "head_distances",
    "head_importance",
    "labeled_pairs",
    "mass_on",
    "mean_distance",
    "merge_pieces",
    "norms",
    "offset_histogram",
    "open_probability",
    "pair_accuracy",
    "pattern",
    "pattern_share",
    "prefix_matching",
    "pruned",
    "rank_heads",
    "read",
    "repeated_tokens",
    "rollout",
    "settled_gates",
    "sink_rate",
    "sink_score",
    "time_warp",
    "token_kinds",
    "value_zeroing",
    "with_residual",
    "word_times",
]
