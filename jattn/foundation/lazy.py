"""Names of a package that are imported when they are first asked for."""

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any


def on_demand(
    package: str, modules: Mapping[str, str], otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of a package, for what takes long to import.

    Args:
        package: its `__name__`.
        modules: for each name, the module that has it, relative to the package.
        otherwise: the `__getattr__` for other names.

    >>> on_demand("jattn", {"Causal": ".masks.order"})("Causal").__name__
    'Causal'
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(modules[name], package), name)
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def submodules(package: str, names: Collection[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose modules are imported when they are first asked for.

    >>> submodules("jattn", ("masks",))("masks").__name__
    'jattn.masks'
    """

    def get(name: str) -> Any:
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
