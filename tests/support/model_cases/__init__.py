"""The table of tiny models that are compared with Hugging Face's: a row buys what models/test_families.py tests.

A family is a module of this package with `CASES`. `tests/models/make_expected.py` writes what Hugging Face gives for
each case; run it after a change.
"""

import importlib
import pkgutil

from .case import Case, objective, random_tensor

__all__ = ["CASES", "Case", "objective", "random_tensor"]

_FAMILIES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "case")

CASES: dict[str, dict[str, Case]] = {name: importlib.import_module(f".{name}", __name__).CASES for name in _FAMILIES}
"""Cases by family and name."""
