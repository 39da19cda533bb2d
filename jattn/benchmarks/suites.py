"""The benchmark suites, by name."""

from .cases import cpu
from .linear import linear
from .sparse import sparse

SUITES = {"cpu": cpu, "linear": linear, "sparse": sparse}
