"""A sequence summed up by attention."""

from .learned_queries import AttentionPooling

__all__ = [
    "AttentionPooling",
]
