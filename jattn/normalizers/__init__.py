"""Normalizers: from a row of scores to the weights of the values."""

from .elementwise import ReLU, Sigmoid
from .softmax import Normalizer, Softmax
from .sparse import Entmax15, Sparsemax

__all__ = ["Entmax15", "Normalizer", "ReLU", "Sigmoid", "Softmax", "Sparsemax"]
