"""Variants: gated."""

from .captioning import CaptioningAttention, Glimpse, doubly_stochastic_loss, moving_baseline, reinforce_loss
from .coverage import Attended, CoverageAttention, coverage_loss, coverage_of
from .forgetting import ForgettingAttention
from .modulation import Modulation
from .pointer import GenerationGate, pointer_log_probabilities, pointer_log_probability

__all__ = [
    "Attended",
    "CaptioningAttention",
    "CoverageAttention",
    "ForgettingAttention",
    "GenerationGate",
    "Glimpse",
    "Modulation",
    "coverage_loss",
    "coverage_of",
    "doubly_stochastic_loss",
    "moving_baseline",
    "pointer_log_probabilities",
    "pointer_log_probability",
    "reinforce_loss",
]
