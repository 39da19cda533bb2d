"""Recurrent variants: a state of fixed size instead of a cache, in time linear in the length."""

from .delta_net import DeltaNet
from .gated_delta_net import GatedDeltaNet
from .gla import GLA
from .kimi_delta import KimiDelta
from .layer import RecurrentState
from .mamba2 import Mamba2, ssd, ssd_step
from .retnet import RetNet
from .rwkv import RWKV

__all__ = [
    "GLA",
    "RWKV",
    "DeltaNet",
    "GatedDeltaNet",
    "KimiDelta",
    "Mamba2",
    "RecurrentState",
    "RetNet",
    "ssd",
    "ssd_step",
]
