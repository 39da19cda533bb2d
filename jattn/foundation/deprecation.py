"""Deprecations: an old name keeps working for a while, and warns.

A public name, argument or value that is replaced stays for at least one minor version. Its use gives a
`DeprecationWarning` that names the replacement and the version in which the old one is removed. Every deprecation is in
`DEPRECATIONS`, and a test fails once the package reaches a version in which one of them should be gone.

>>> import warnings
>>> @deprecated("`jattn.attention`", removed_in="9.0")
... def attend(x):
...     return x
>>> with warnings.catch_warnings(record=True) as caught:
...     warnings.simplefilter("always")
...     attend(1)
1
>>> print(caught[0].message)
`jattn.foundation.deprecation.attend` is deprecated and will be removed in jattn 9.0: use `jattn.attention` instead.
"""

import functools
import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_PACKAGE = str(Path(__file__).parents[1])


class Deprecation(NamedTuple):
    """What is deprecated.

    Attributes:
        old: the old name, in backticks.
        new: what to use instead, in backticks.
        removed_in: the version of jattn that no longer has it, such as `"0.3"`.
    """

    old: str
    new: str
    removed_in: str

    def warn(self) -> None:
        """Warn the first caller outside of jattn."""
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame, level = frame.f_back, level + 1
        message = f"{self.old} is deprecated and will be removed in jattn {self.removed_in}: use {self.new} instead."
        warnings.warn(message, DeprecationWarning, stacklevel=level)


DEPRECATIONS: list[Deprecation] = []
"""Every deprecation of the modules imported so far."""


def deprecation(old: str, new: str, *, removed_in: str) -> Deprecation:
    """Record a deprecation; call `.warn()` where the old name, argument or value is used.

    Args:
        old: what is deprecated, in backticks.
        new: what to use instead, in backticks.
        removed_in: the version of jattn that no longer has it.
    """
    found = Deprecation(old, new, removed_in)
    DEPRECATIONS.append(found)
    return found


def deprecated(new: str, *, removed_in: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a function or method that is replaced by another.

    Args:
        new: what to use instead, in backticks.
        removed_in: the version of jattn that no longer has it.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        found = deprecation(f"`{function.__module__}.{function.__qualname__}`", new, removed_in=removed_in)

        @functools.wraps(function)
        def warning(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
            found.warn()
            return function(*arguments, **keywords)

        return warning

    return decorate


def renamed(module: str, names: Mapping[str, str], *, removed_in: str) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds objects under their old names.

        __getattr__ = renamed(__name__, {"Old": "jattn.masks.New"}, removed_in="0.3")

    Args:
        module: the `__name__` of the module that had the old names.
        names: the full new name of each old name.
        removed_in: the version of jattn that no longer has the old names.

    Raises:
        AttributeError: (from the returned function) the name is neither in the module nor an old one.
    """
    known = {old: deprecation(f"`{module}.{old}`", f"`{new}`", removed_in=removed_in) for old, new in names.items()}

    def find(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        known[name].warn()
        return pkgutil.resolve_name(names[name])

    return find
