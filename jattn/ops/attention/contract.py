"""What an implementation promises: to say what it refuses before it runs, and never to change the meaning."""

import abc
import dataclasses
from typing import Any

import jax

from .call import Call
from .partial import Partial


class Unsupported(ValueError):
    """No implementation, or not the one that was named, can run a call; the message gives each one's reason."""


class Implementation(abc.ABC):
    """A way to compute a call. Implementations differ in speed and in what they refuse, never in meaning."""

    name: str

    @abc.abstractmethod
    def refuses(self, call: Call) -> str | None:
        """Why this call cannot be run here, or None if it can. Decided without looking at any value."""

    @abc.abstractmethod
    def run(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        """The streamed sum and its log mass, before the normalizer's `finish`."""

    def attend(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        """The output, its lse and the remainder."""
        partial = self.run(call, query, key, value)
        out = call.normalizer.rescale(partial.out, partial.lse, partial.remainder)
        return dataclasses.replace(partial, out=out.astype(value.dtype))

    @abc.abstractmethod
    def describe(self, call: Call) -> tuple[Any, str]:
        """The tile plan the call would run with (None where everything is computed); and, in words, the memory that a
        forward and backward pass takes beside inputs, outputs and gradients."""
