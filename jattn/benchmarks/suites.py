"""The benchmark suites, by name."""

from .cases import cpu
from .decoding import decode
from .linear import linear
from .sparse import sparse

SUITES = {"cpu": cpu, "decode": decode, "linear": linear, "sparse": sparse}
