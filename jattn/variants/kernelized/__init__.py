"""Attention whose weights are products of features: linear in the length, O(1) per token when decoding."""

from .attention import KernelState, kernel_state, kernelized_attention, kernelized_step
from .features import ELU, Cosine, FeatureMap, Function, Learned, Taylor
from .layers import Based, CosFormer, Hedgehog, LayerState, LinearTransformer, Performer
from .performer import RandomFeatures, orthogonal_projection

__all__ = [
    "ELU",
    "Based",
    "CosFormer",
    "Cosine",
    "FeatureMap",
    "Function",
    "Hedgehog",
    "KernelState",
    "LayerState",
    "Learned",
    "LinearTransformer",
    "Performer",
    "RandomFeatures",
    "Taylor",
    "kernel_state",
    "kernelized_attention",
    "kernelized_step",
    "orthogonal_projection",
]
