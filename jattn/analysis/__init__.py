"""Looking inside attention: maps from any source, and what their heads do."""

from .describing import Head, Heads, describe
from .distances import distances, embedding, head_distances
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
    labelled_pairs,
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
    "best_offset",
    "chance",
    "confidence",
    "copying",
    "coreference_pairs",
    "dependency_pairs",
    "describe",
    "distances",
    "embedding",
    "entropy",
    "has_choice",
    "head_distances",
    "labelled_pairs",
    "mass_on",
    "mean_distance",
    "merge_pieces",
    "offset_histogram",
    "pair_accuracy",
    "pattern",
    "pattern_share",
    "prefix_matching",
    "read",
    "repeated_tokens",
    "sink_rate",
    "sink_score",
    "token_kinds",
]
