"""Attention as a Pallas kernel for TPUs: forward, and one fused backward pass, driven by the plan's lists of tiles."""

from .implementation import PallasTPU

__all__ = ["PallasTPU"]
