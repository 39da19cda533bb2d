"""The implementations of attention. `registry` has their contract, and the order in which the default tries them."""

from typing import TYPE_CHECKING

from ....foundation.deprecation import renamed as _renamed
from ....foundation.lazy import on_demand as _on_demand
from ...dispatch import Implementation
from .reference import Reference
from .registry import ATTENTION
from .tiled import Tiled

if TYPE_CHECKING:  # Pallas takes as long to import as all of jattn
    from .pallas_tpu import PallasTPU

__all__ = ["ATTENTION", "Implementation", "PallasTPU", "Reference", "Tiled"]

__getattr__ = _on_demand(
    __name__,
    {"PallasTPU": ".pallas_tpu"},
    _renamed(__name__, {"Chunked": "jattn.implementations.Tiled"}, removed_in="0.3"),
)
