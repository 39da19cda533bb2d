"""The target: for which platform, and which generation of it, a program is compiled.

A program may be traced on one machine and compiled for another (`jax.export`, ahead-of-time compilation for a TPU that
is not there), so what it is compiled for is a value that is passed along, never a question to the machine at hand.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
"""What JAX calls the platforms that a program is lowered for."""

_GENERATIONS = {
    "cpu": r"(?!)",
    "tpu": r"v?\d+[a-z]?",
    "cuda": r"[a-z]{1,3}\d{1,4}[a-z]?",
    "rocm": r"mi\d{3}[a-z]?",
}
_LITE = {"v5 lite": "v5e", "v6 lite": "v6e", "v5": "v5p"}  # as devices call themselves

_GIVEN: ContextVar["Target | None"] = ContextVar("_GIVEN", default=None)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Args:
        platform: `"cpu"`, `"tpu"`, `"cuda"` or `"rocm"`; `"gpu"` means `"cuda"`.
        generation: such as `"v5e"` or `"h100"`; None where it is not known.

    Raises:
        ValueError: another platform; something that is no generation of it.

    >>> print(Target("tpu", "v5e"), Target("cpu"))
    tpu v5e cpu
    """

    platform: str
    generation: str | None = None

    def __post_init__(self):
        if self.platform == "gpu":
            object.__setattr__(self, "platform", "cuda")
        if self.platform not in PLATFORMS:
            raise ValueError(f"`platform` must be one of {', '.join(map(repr, PLATFORMS))}; got {self.platform!r}.")
        if self.generation is not None and not re.fullmatch(_GENERATIONS[self.platform], self.generation):
            raise ValueError(
                f"`generation` must be one of {self.platform}, such as 'v5e' or 'h100', or None; got "
                f"{self.generation!r}."
            )

    def __str__(self) -> str:
        return self.platform if self.generation is None else f"{self.platform} {self.generation}"


def as_target(value: Any) -> Target:
    """A `Target`, also from its text, a device or an abstract device.

    Raises:
        ValueError: something else.

    >>> as_target("tpu v5e")
    Target(platform='tpu', generation='v5e')
    """
    if isinstance(value, Target):
        return value
    if isinstance(value, str) and value.split() and len(value.split()) <= 2:
        try:
            return Target(*value.lower().split())
        except ValueError as error:
            raise ValueError(f"`target` must be a platform and perhaps its generation: {error}") from None
    if hasattr(value, "device_kind") and hasattr(value, "platform"):
        return _of_device(value)
    raise ValueError(
        f"`target` must be such as 'cpu', 'tpu v5e' or 'cuda h100', a `Target` or a device; got {value!r}."
    )


def _of_device(device: Any) -> Target:
    platform, kind = str(device.platform).lower(), str(device.device_kind).lower()
    if platform == "gpu" and ("amd" in kind or "instinct" in kind or re.search(r"\bmi\d{3}", kind)):
        platform = "rocm"
    platform = {"gpu": "cuda"}.get(platform, platform)
    if platform not in PLATFORMS:
        raise ValueError(f"`target` must be a device of {', '.join(PLATFORMS)}; got {device!r}.")
    if platform == "cpu":
        return Target("cpu")
    name = kind.removeprefix(platform).removeprefix("nvidia").strip()
    name = _LITE.get(name, name)
    found = re.search(rf"\b{_GENERATIONS[platform]}\b", name)
    return Target(platform, found.group() if found else None)


@contextlib.contextmanager
def compiled_for(target: Any) -> Iterator[Target]:
    """Within it, programs are traced for this target, whatever they are lowered for.

    Args:
        target: as of `as_target`.

    >>> with compiled_for("tpu v5e"):
    ...     print(given_target())
    tpu v5e
    """
    found = as_target(target)
    token = _GIVEN.set(found)
    try:
        yield found
    finally:
        _GIVEN.reset(token)


def given_target() -> Target | None:
    """The target of the innermost `compiled_for`; None outside of one."""
    return _GIVEN.get()


def expected_target() -> Target:
    """The target given, else the device that JAX would compile for if nobody says otherwise.

    Only a guess, for what may be wrong without changing a program's meaning or its speed on another platform.
    """
    return _GIVEN.get() or as_target(jax.devices()[0])
