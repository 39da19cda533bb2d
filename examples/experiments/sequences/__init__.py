"""Shared by the experiments on sequences: a small language model around any layer, its training, a task."""

from .model import Softmax, Task, train
from .recall import LENGTH, WIDTH, Model, recalled

__all__ = ["LENGTH", "WIDTH", "Model", "Softmax", "Task", "recalled", "train"]
