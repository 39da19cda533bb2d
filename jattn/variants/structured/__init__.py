"""Structured attention: weights are marginals of segmentations and dependency trees."""

from .chain import chain_log_partition, chain_marginals
from .layer import SoftParents
from .nonprojective import nonprojective_log_partition, nonprojective_marginals
from .projective import projective_log_partition, projective_marginals
from .segmentation import Segmentation, segmentation_attention
from .trees import TreeMarginals, soft_parents

__all__ = [
    "Segmentation",
    "SoftParents",
    "TreeMarginals",
    "chain_log_partition",
    "chain_marginals",
    "nonprojective_log_partition",
    "nonprojective_marginals",
    "projective_log_partition",
    "projective_marginals",
    "segmentation_attention",
    "soft_parents",
]
