"""Attention of a decoder to its source: global and local attention, coverage, and copying."""

from .coverage import Attended, CoverageAttention, coverage_loss, coverage_of
from .local_m import local_m
from .local_p import LuongLocal, local_p
from .location import Location
from .luong import LuongGlobal
from .pointer import GenerationGate, pointer_log_probabilities, pointer_log_probability

__all__ = [
    "Attended",
    "CoverageAttention",
    "GenerationGate",
    "Location",
    "LuongGlobal",
    "LuongLocal",
    "coverage_loss",
    "coverage_of",
    "local_m",
    "local_p",
    "pointer_log_probabilities",
    "pointer_log_probability",
]
