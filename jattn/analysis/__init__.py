"""Looking inside attention: maps from any source, and what their heads do."""

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
    "Layer",
    "Maps",
    "chance",
    "confidence",
    "copying",
    "distances",
    "embedding",
    "entropy",
    "has_choice",
    "head_distances",
    "mass_on",
    "mean_distance",
    "offset_histogram",
    "pattern",
    "pattern_share",
    "prefix_matching",
    "read",
    "repeated_tokens",
    "sink_rate",
    "sink_score",
    "token_kinds",
]
