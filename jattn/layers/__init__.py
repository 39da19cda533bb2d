"""Layers as pure functions of a tree of parameters. `jattn.nnx` and `jattn.linen` are thin wrappers around them."""

from . import caches
from .attention import MultiHeadAttention
from .attention_fn import attention_fn
from .causal import CausalAttention
from .generation import Generative
from .layer import Layer, Parameter, parameter_count
from .multi_head import multi_head
from .norms import QKNorm
from .parameters import AXES, Sizes, parameter_shapes, parameter_specs

__all__ = [
    "AXES",
    "CausalAttention",
    "Generative",
    "Layer",
    "MultiHeadAttention",
    "Parameter",
    "QKNorm",
    "Sizes",
    "attention_fn",
    "caches",
    "multi_head",
    "parameter_count",
    "parameter_shapes",
    "parameter_specs",
]
