"""Linear-time attention: one recurrence in three forms (step, scan, chunked)."""

from .delta import delta_rule, delta_step
from .linear import linear_recurrence, linear_step

__all__ = ["delta_rule", "delta_step", "linear_recurrence", "linear_step"]
