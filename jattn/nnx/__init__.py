"""Layers for Flax nnx. Importing this module imports Flax; `import jattn` alone does not."""

from ..modules.attention_fn import attention_fn
from .multi_head import MultiHeadAttention

__all__ = ["MultiHeadAttention", "attention_fn"]
