"""Selection: each query attends only to its best keys, or to one sampled key."""

from .hard import Drawn, hard, reinforce
from .top_k import top_k

__all__ = [
    "Drawn",
    "hard",
    "reinforce",
    "top_k",
]
