"""Runs functions of stateful models (those of Flax NNX) on copies, so that inspecting a model does not change it."""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from .code import copied


def is_stateful(value: Any) -> bool:
    """Whether a value is a model, optimizer or random stream of Flax NNX. Does not import Flax."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Pytree)


def on_copies(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run on copies of all models that it receives, is a method of, closes over, or names as globals.

    A model that counts its random keys must not do so in a trace other than the one it was created in; its copy may.
    """

    def run(*arguments: Any, **keywords: Any) -> Any:
        copies: dict[int, Any] = {}

        def one(value: Any, copy: Callable[[Any], Any]) -> Any:
            if is_stateful(value):
                if id(value) not in copies:
                    copies[id(value)] = sys.modules["flax.nnx"].clone(value)
                return copies[id(value)]
            if isinstance(value, types.MethodType):
                owner = one(value.__self__, copy)
                return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
            if isinstance(value, functools.partial):
                return functools.partial(every(value.func), *every(value.args), **every(value.keywords))
            if type(value) in (list, tuple):
                return type(value)(one(item, copy) for item in value)
            if type(value) is dict:
                return {name: one(item, copy) for name, item in value.items()}
            users = isinstance(value, types.FunctionType) and value.__globals__ is getattr(
                function, "__globals__", None
            )
            return copy(value) if users else value

        def every(value: Any) -> Any:
            return copied(value, one) if isinstance(value, types.FunctionType) else one(value, lambda same: same)

        return every(function)(*every(arguments), **every(keywords))

    return run
