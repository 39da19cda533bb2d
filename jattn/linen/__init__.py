"""Layers for Flax linen. Importing this module imports Flax; `import jattn` alone does not."""

from ..layers.attention_fn import attention_fn
from .layer import Layer
from .multi_head import MultiHeadAttention

__all__ = ["Layer", "MultiHeadAttention", "attention_fn"]
