"""Each query attends to its best keys only, or to one that is drawn."""

from .hard import Drawn, hard, reinforce
from .top_k import top_k

__all__ = [
    "Drawn",
    "hard",
    "reinforce",
    "top_k",
]
