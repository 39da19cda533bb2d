"""The table of tiny models that are compared with Hugging Face's: a row buys what models/test_families.py tests.

`tests/models/make_expected.py` writes what Hugging Face gives for each; run it after a change of a row.
"""

from . import gpt2, vit
from .case import Case, objective, random_tensor

__all__ = ["CASES", "Case", "objective", "random_tensor"]

CASES: dict[str, dict[str, Case]] = {
    "gpt2": gpt2.CASES,
    "vit": vit.CASES,
}
"""Cases by family and name."""
