"""Pooling: a sequence summarized by attention."""

from .learned_queries import AttentionPooling

__all__ = [
    "AttentionPooling",
]
