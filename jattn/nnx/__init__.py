"""Layers for Flax nnx. Importing this module imports Flax; `import jattn` alone does not."""

from ..layers.attention_fn import attention_fn
from .layer import Layer, PieceArray
from .multi_head import MultiHeadAttention

__all__ = ["Layer", "MultiHeadAttention", "PieceArray", "attention_fn"]
