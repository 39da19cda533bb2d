"""NumPy arrays with exact gradients: `Num` records how an array was computed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Num:
    """An array, and for each of the arrays it was made from, how a cotangent flows back to it."""

    __array_ufunc__ = None  # `ndarray * Num` is left to Num

    def __init__(self, value: Any, *parents: tuple["Num", Callable[[np.ndarray], np.ndarray]]):
        self.value: Any = value if type(value) in (int, float) else np.asarray(value)  # Python numbers widen nothing
        self.parents = parents

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.value)

    def __add__(self, other):
        other = num(other)
        return _broadcasting(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other):
        other = num(other)
        return _broadcasting(
            self.value * other.value, (self, lambda g: g * other.value), (other, lambda g: g * self.value)
        )

    def __truediv__(self, other):
        other = num(other)
        value = self.value / other.value
        return _broadcasting(value, (self, lambda g: g / other.value), (other, lambda g: -g * value / other.value))

    def __pow__(self, power: float):
        return Num(self.value**power, (self, lambda g: g * power * self.value ** (power - 1)))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -num(other)

    def __rsub__(self, other):
        return num(other) + -self

    def __rtruediv__(self, other):
        return num(other) / self

    __radd__ = __add__
    __rmul__ = __mul__


def num(value: Any) -> Num:
    return value if isinstance(value, Num) else Num(value)


def _broadcasting(value: np.ndarray, *parents) -> Num:
    def summed_to(shape, back):
        def flow(g):
            g = np.broadcast_to(back(g), np.shape(value))
            g = g.sum(tuple(range(g.ndim - len(shape))))
            return g.sum(tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)

        return flow

    return Num(value, *((parent, summed_to(parent.shape, back)) for parent, back in parents))


def exp(x: Num) -> Num:
    value = np.exp(x.value)
    return Num(value, (x, lambda g: g * value))


def log(x: Num) -> Num:
    return Num(np.log(x.value), (x, lambda g: g / x.value))


def tanh(x: Num) -> Num:
    value = np.tanh(x.value)
    return Num(value, (x, lambda g: g * (1 - value**2)))


def where(condition: np.ndarray, x: Any, y: Any) -> Num:
    """Elementwise choice; no cotangent flows, and no NaN comes, from what is not chosen."""
    x, y = num(x), num(y)
    value = np.where(condition, x.value, y.value)
    return _broadcasting(value, (x, lambda g: np.where(condition, g, 0)), (y, lambda g: np.where(condition, 0, g)))


def total(x: Num, axis: int | tuple[int, ...]) -> Num:
    """The sum over axes, which are kept with size 1."""
    return Num(x.value.sum(axis, keepdims=True), (x, lambda g: np.broadcast_to(g, x.shape)))


def reshape(x: Num, shape: Sequence[int]) -> Num:
    return Num(x.value.reshape(shape), (x, lambda g: g.reshape(x.shape)))


def take(x: Num, index: np.ndarray, axis: int) -> Num:
    """Slices of x along an axis, by an integer array of any rank."""

    def flow(g):
        back = np.zeros(x.shape, g.dtype)
        np.add.at(np.moveaxis(back, axis, 0), index, np.moveaxis(g, range(axis, axis + index.ndim), range(index.ndim)))
        return back

    return Num(np.take(x.value, index, axis), (x, flow))


def einsum(spec: str, x: Num, y: Num) -> Num:
    left, right, out = spec.replace("->", ",").split(",")

    def product(spec, a, b):
        return np.einsum(spec, a, b, optimize=True)

    return Num(
        product(spec, x.value, y.value),
        (x, lambda g: product(f"{out},{right}->{left}", g, y.value)),
        (y, lambda g: product(f"{out},{left}->{right}", g, x.value)),
    )


def rounded(x: Num, storage: Any) -> Num:
    """x as a dtype can hold it; the cotangent is stored in it too."""

    def store(value):
        return value if storage is None else value.astype(storage).astype(value.dtype)

    return Num(store(x.value), (x, store))


def gradients(outputs: Sequence[tuple[Num, np.ndarray]], inputs: Sequence[Num]) -> list[np.ndarray]:
    """Gradients of Σ output · cotangent with respect to the inputs."""
    order: list[Num] = []
    seen: set[int] = set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.parents:
                visit(parent)
            order.append(node)

    flowing: dict[int, np.ndarray] = {}
    for node, cotangent in outputs:
        visit(node)
        flowing[id(node)] = flowing.get(id(node), 0) + cotangent
    for node in reversed(order):
        for parent, flow in node.parents if id(node) in flowing else ():
            flowing[id(parent)] = flowing.get(id(parent), 0) + flow(flowing[id(node)])
    return [flowing.get(id(item), np.zeros(item.shape)) for item in inputs]
