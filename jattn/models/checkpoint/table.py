"""The table of a family: which tensor of a checkpoint is which parameter, and how its axes are arranged.

A `Table` holds `Rule`s. Each is read in both directions, so one table both loads and saves:

    tensor "h.0.attn.c_attn.weight" [features, 3 · heads · dim]
        <-> Rule("h.{block}.attn.c_attn.weight",
                 ("blocks.{block}.attention.query.kernel", ...key..., ...value...),
                 "f (part h d) -> part f h d")
        <-> three parameters [features, heads, dim]

Axes are written as in einops: names in parentheses share one axis. Their sizes follow from the parameters, so the shape
that a tensor must have is known before any file is read.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Arrangement:
    """The axes of a tensor as stored, and as a parameter: `"(h d) f -> f h d"`.

    Args:
        axes: names of the axes of the tensor, `->`, and of the parameter; names in parentheses share an axis.
        sizes: the sizes of axes that the parameter's shape does not tell.

    Raises:
        ValueError: the two sides do not have the same names.

    >>> kernel = Arrangement("(h d) f -> f h d")
    >>> kernel.stored_shape((64, 8, 4))
    (32, 64)
    >>> kernel.load(np.zeros((32, 64)), (64, 8, 4)).shape
    (64, 8, 4)
    """

    def __init__(self, axes: str, **sizes: int):
        left, arrow, right = axes.partition("->")
        self.stored, self.parameter = _groups(left), _groups(right)
        names = [sorted(name for group in side for name in group) for side in (self.stored, self.parameter)]
        if not arrow or names[0] != names[1] or len(set(names[0])) != len(names[0]):
            raise ValueError(f"`axes` must name the same axes on both sides, as in '(h d) f -> f h d'; got {axes!r}.")
        self.axes, self.sizes = axes, sizes

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape of the tensor, for a parameter of this shape.

        Raises:
            ValueError: the shape does not fit the names of its axes.
        """
        sizes = self._sizes(shape)
        return tuple(math.prod(sizes[name] for name in group) for group in self.stored)

    @property
    def moves(self) -> bool:
        """Whether numbers change their places in memory, not only the shape."""
        return [name for group in self.stored for name in group] != [name for group in self.parameter for name in group]

    def load(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """The parameter, of this shape, from the tensor."""
        return _rearranged(tensor, self.stored, self.parameter, self._sizes(shape))

    def save(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor from the parameter."""
        return _rearranged(parameter, self.parameter, self.stored, self._sizes(parameter.shape))

    def _sizes(self, shape: Shape) -> dict[str, int]:
        sizes = dict(self.sizes)
        if len(shape) != len(self.parameter):
            raise ValueError(f"the axes {self.axes!r} do not fit a parameter of shape {shape}.")
        for group, size in zip(self.parameter, shape, strict=True):
            open_names = [name for name in group if name not in sizes]
            known = math.prod(sizes[name] for name in group if name in sizes)
            if len(open_names) > 1 or (known and size % known):
                raise ValueError(f"the axes {self.axes!r} do not fit a parameter of shape {shape}.")
            sizes |= {name: size // known for name in open_names}
        return sizes


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: a tensor of the checkpoint, and the parameters that it holds.

    Args:
        pattern: the tensor's name, without the prefix of the family. `{block}`, or another word in braces, stands for a
            number, and for the same number in `paths`.
        paths: the path of the parameter in the model, joined by dots. Several, if the tensor holds several of the same
            shape: then the first name of the parameter's axes counts them.
        axes: how axes are arranged, as in `Arrangement`; by default tensor and parameter have the same axes.
        sizes: sizes of axes that the shape of the parameter does not tell.
        given: a parameter without which the rule does not hold, such as that of a gate.
        unless: a parameter with which the rule does not hold.
        tied: the tensor repeats a parameter that another rule fills. It may be absent from a checkpoint, must be equal
            if it is there, and is not written.

    >>> Rule("h.{block}.ln_1.weight", "blocks.{block}.attention_norm.scale").tensor("blocks.7.attention_norm.scale")
    'h.7.ln_1.weight'
    """

    pattern: str
    paths: str | tuple[str, ...]
    axes: str | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    given: str | None = None
    unless: str | None = None
    tied: bool = False

    def tensor(self, path: str) -> str | None:
        """The name of the tensor that holds the first of the rule's parameters at this path; None if it is another."""
        found = _regex(self._paths[0]).fullmatch(path)
        return None if found is None else self.pattern.format(**found.groupdict())

    def parameters(self, tensor: str) -> tuple[str, ...]:
        """The paths of the parameters in a tensor of this name."""
        found = _regex(self.pattern).fullmatch(tensor)
        return () if found is None else tuple(path.format(**found.groupdict()) for path in self._paths)

    def holds(self, tensor: str, parameters: Collection[str]) -> bool:
        """Whether a model with these parameters has the tensor of this name."""
        found = _regex(self.pattern).fullmatch(tensor)
        if found is None:
            return False
        needed = (*self._paths, *(() if self.given is None else (self.given,)))
        excluded = () if self.unless is None else (self.unless,)
        named = [[path.format(**found.groupdict()) in parameters for path in one] for one in (needed, excluded)]
        return all(named[0]) and not any(named[1])

    def keeps(self, tensor: str) -> bool:
        """Whether the tensor of this name becomes parameters as it lies in memory."""
        if self.tied or (self._arrangement is not None and self._arrangement.moves):
            return False
        return _regex(self.pattern).fullmatch(tensor) is not None

    def stored_shape(self, shape: Shape) -> Shape:
        """The shape of the tensor, for parameters of this shape."""
        return shape if self._arrangement is None else self._arrangement.stored_shape(self._whole(shape))

    def load(self, tensor: np.ndarray, shape: Shape) -> Sequence[np.ndarray]:
        """The parameters, each of this shape, from the tensor."""
        whole = tensor if self._arrangement is None else self._arrangement.load(tensor, self._whole(shape))
        return [whole] if isinstance(self.paths, str) else list(whole)

    def save(self, parameters: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor from its parameters."""
        whole = parameters[0] if isinstance(self.paths, str) else np.stack(parameters)
        return whole if self._arrangement is None else self._arrangement.save(whole)

    @property
    def _paths(self) -> tuple[str, ...]:
        return (self.paths,) if isinstance(self.paths, str) else self.paths

    @functools.cached_property
    def _arrangement(self) -> Arrangement | None:
        return None if self.axes is None else Arrangement(self.axes, **self.sizes)

    def _whole(self, shape: Shape) -> Shape:
        return shape if isinstance(self.paths, str) else (len(self.paths), *shape)


@dataclasses.dataclass(frozen=True)
class Table:
    """The tensors of a family.

    Args:
        rules: for the model itself.
        heads: for what stands on top of it, such as the head of a language model.
        prefix: what names of `rules` begin with in checkpoints of a model with a head, such as `"transformer."`.
            Checkpoints may lack it.
        ignored: names of tensors that hold no parameter of the model, such as buffers: patterns with `*`.
        renamed: endings of names in old checkpoints, and what they are called now.
    """

    rules: tuple[Rule, ...]
    heads: tuple[Rule, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def current(self, tensor: str) -> str:
        """The name that a tensor of an old checkpoint has now."""
        for old, new in self.renamed.items():
            if tensor.endswith(old):
                return tensor.removesuffix(old) + new
        return tensor

    def named(self, prefixed: bool) -> tuple[Rule, ...]:
        """All rules, with or without the prefix."""
        prefix = self.prefix if prefixed else ""
        return (*(dataclasses.replace(rule, pattern=prefix + rule.pattern) for rule in self.rules), *self.heads)

    def named_as(self, tensors: Iterable[str]) -> tuple[Rule, ...]:
        """All rules, with the prefix if one of these tensors has it."""
        return self.named(bool(self.prefix) and any(name.startswith(self.prefix) for name in tensors))


class Entry(NamedTuple):
    """A tensor that a checkpoint of a model has.

    Attributes:
        rule: the rule that maps it.
        paths: its parameters.
        parameter_shape: the shape of each.
        shape: the shape of the tensor.
    """

    rule: Rule
    paths: tuple[str, ...]
    parameter_shape: Shape
    shape: Shape


def entries(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """The tensors that hold the parameters of a model, by name; those of tied rules as well.

    Args:
        rules: the table.
        shapes: the shape of each parameter, by path.

    Raises:
        ValueError: the table has no rule for a parameter, or two tensors for one.

    >>> table = (Rule("wte.weight", "embedding"), Rule("fc.weight", "linear.kernel", "o i -> i o"))
    >>> {name: one.shape for name, one in entries(table, {"embedding": (9, 4), "linear.kernel": (4, 5)}).items()}
    {'wte.weight': (9, 4), 'fc.weight': (5, 4)}
    """
    found: dict[str, Entry] = {}
    filled: dict[str, str] = {}
    for rule in rules:
        for path in shapes:
            tensor = rule.tensor(path)
            if tensor is None or (rule.tied and tensor in found):
                continue
            if not rule.holds(tensor, shapes):
                continue
            paths = rule.parameters(tensor)
            found[tensor] = Entry(rule, paths, shapes[path], rule.stored_shape(shapes[path]))
            for one in () if rule.tied else paths:
                if one in filled:
                    raise ValueError(f"the table fills `{one}` from both `{filled[one]}` and `{tensor}`.")
                filled[one] = tensor
    lacking = sorted(shapes.keys() - filled.keys())
    if lacking:
        raise ValueError(f"the table has no rule for the parameters {', '.join(lacking)}.")
    return found


def _groups(side: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^()]*\)|\w+", side))


def _rearranged(array: np.ndarray, source: Any, target: Any, sizes: Mapping[str, int]) -> np.ndarray:
    names = [name for group in source for name in group]
    order = [names.index(name) for group in target for name in group]
    apart = array.reshape([sizes[name] for name in names]).transpose(order)
    return apart.reshape([math.prod(sizes[name] for name in group) for group in target])


@functools.lru_cache(4096)
def _regex(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[0-9]+)", re.escape(template)))
