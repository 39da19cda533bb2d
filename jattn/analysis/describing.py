"""`describe`: what each head does, as a table.

The score of a head for a pattern is 0 if it attends evenly, and 1 if it attends to nothing but the pattern:

    score = (share - chance) / (1 - chance)

Counted are the queries that have a choice: that may attend both to a key of the pattern and to another. `share` is that
of `pattern_share`, and `chance` the share that even attention has. For labeled pairs, `share` is the accuracy, and
`chance` the accuracy of the best fixed offset. So the scores of all patterns can be compared. The pattern with the
largest score is the head's label.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_counts, check_flags
from ..foundation.arrays import describe as described
from ..foundation.columns import columns
from ..ops.attention.recording.choice import listed
from .maps import Layer, Maps, is_index
from .measures import confidence, entropy, mean_distance, sink_score, token_kinds
from .pairs import Pairs, best_offset, pair_accuracy
from .patterns import PATTERNS, chance, has_choice, pattern, pattern_share
from .reading import read
from .rows import booleans

MEASURES = ("entropy", "confidence", "distance", "sink")
PLACES, WORDS = ("previous", "next", "current", "first"), ("duplicate", "induction", "delimiter")


@dataclasses.dataclass(frozen=True)
class Head:
    """What one head does.

    Attributes:
        layer: the name of its layer.
        number: the number of its layer.
        head: its index.
        label: the pattern with the largest score; "-" if no score is large enough, "NaN" if its weights are.
        score: that score, 0 for even attention and 1 for nothing but the pattern.
        runner_up: the pattern with the second largest score.
        margin: how much larger the first score is.
        scores: its score for every pattern.
        accuracy: for labeled pairs, how often the head is right, and how often the best fixed offset is.
        measures: entropy, confidence, distance and sink score.
    """

    layer: str
    number: int
    head: int
    label: str
    score: float
    runner_up: str
    margin: float
    scores: Mapping[str, float]
    accuracy: Mapping[str, tuple[float, float]]
    measures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Heads(Sequence[Head]):
    """What heads do: a sequence of `Head`. Printing it shows a table.

    Attributes:
        heads: in the order of layers, unless sorted.
        notes: what is unusual about the weights, and which patterns no query has.
    """

    heads: tuple[Head, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return dataclasses.replace(self, heads=self.heads[index])
        if not is_index(index):
            raise ValueError(
                f"an index of `Heads` must be an int; got {described(index)}. `of(layer, head)` finds one by layer."
            )
        return self.heads[index]

    @property
    def labels(self) -> list[str]:
        """The patterns that heads are scored for."""
        return list(dict.fromkeys(name for head in self.heads for name in head.scores))

    def of(self, layer: int | str, head: int) -> Head:
        """One head of a layer, which is given by its number or name.

        Raises:
            KeyError: there is none.
            ValueError: the layer is neither a number nor a name, or the head is no number.
        """
        if not is_index(head) or not (is_index(layer) or isinstance(layer, str)):
            raise ValueError(
                "`layer` must be a number or a name, and `head` a number; got "
                f"{described(layer)} and {described(head)}."
            )
        for one in self.heads:
            if one.head == head and layer in (one.number, one.layer):
                return one
        raise KeyError(f"there is no head {head} of layer {layer!r}.")

    def sorted(self, by: str = "score", *, descending: bool | None = None) -> "Heads":
        """The heads in another order.

        Args:
            by: a pattern, a measure, "score", "margin" or "layer".
            descending: by default True, but for "layer".

        >>> import numpy as np
        >>> from jattn import analysis
        >>> heads = analysis.describe([np.stack([np.eye(3), np.eye(3, k=-1)])])
        >>> [head.head for head in heads.sorted("previous")]
        [1, 0]
        """
        known = ("score", "margin", "layer", *MEASURES, *self.labels)
        if not isinstance(by, str) or by not in known:
            raise ValueError(f"`by` must be one of {', '.join(map(repr, known))}; got {by!r}.")

        if descending is not None:
            check_flags(descending=descending)

        def key(head: Head) -> Any:
            if by == "layer":
                return (head.number, head.head)
            if by in ("score", "margin"):
                return getattr(head, by)
            return head.measures.get(by, head.scores.get(by, -np.inf))

        down = by != "layer" if descending is None else descending
        valued = [head for head in self.heads if by == "layer" or np.isfinite(key(head))]
        rest = [head for head in self.heads if not (by == "layer" or np.isfinite(key(head)))]
        return dataclasses.replace(self, heads=(*sorted(valued, key=key, reverse=down), *rest))

    def best(self, label: str) -> Head:
        """The head with the largest score for a pattern, whatever its own label is.

        Raises:
            ValueError: the pattern was not scored.
        """
        self._check(label)
        return self.sorted(label)[0]

    def lead(self, label: str) -> float:
        """How far the best head's score for a pattern is above that of the second."""
        self._check(label)
        scores = [head.scores[label] for head in self.sorted(label) if label in head.scores]
        return scores[0] - scores[1] if len(scores) > 1 else scores[0]

    def _check(self, label: str) -> None:
        if not isinstance(label, str) or label not in self.labels:
            why = next((note for note in self.notes if str(label) in note), "")
            raise ValueError(
                f"`label` must be one of {', '.join(map(repr, self.labels))}; got {label!r}.{' ' + why if why else ''}"
            )

    def table(self, most: int | None = None) -> str:
        """A row for each head: label, score, how far above the runner-up, and measures.

        Args:
            most: the largest number of rows.

        Raises:
            ValueError: it is no number.
        """
        if most is not None:
            check_counts(most=most)
        rows: list[tuple[str, ...]] = [("layer", "head", "label", "score", "above", "runner-up", *MEASURES)]
        for one in self.heads[:most]:
            measures = (f"{one.measures[name] + 0.0:.2f}" for name in MEASURES)
            head = (one.layer, str(one.head), one.label, f"{one.score:.2f}", f"{one.margin:.2f}", one.runner_up)
            rows.append((*head, *measures))
        return "\n".join(columns(rows))

    def __repr__(self) -> str:
        rows = [("pattern", "best head", "score", "above the next head")]
        for label in self.labels:
            one = self.best(label)
            right = ""
            if label in one.accuracy:
                right = "  (right {:.3f}, best offset {:.3f})".format(*one.accuracy[label])
            rows.append(
                (label, f"{one.layer} {one.head}", f"{one.scores[label]:.2f}", f"{self.lead(label):.2f}{right}")
            )
        more = len(self) - 20
        tail = [f"and {more} more heads: `.table()` has all"] if more > 0 else []
        return "\n".join([*columns(rows), "", self.table(20), *tail, *self.notes])


def describe(
    source: Any,
    *,
    patterns: Mapping[str, Any] | None = None,
    pairs: Mapping[str, Pairs] | None = None,
    least: float = 0.2,
    **choices: Any,
) -> Heads:
    """What each head does: its label, its score, and how far above the runner-up.

    Layers are read one at a time. Where queries are tokens among the keys, heads are scored for positions (previous,
    next, current, first), and with tokens also for duplicates, induction and delimiters. Elsewhere, as in
    cross-attention, for `first`, delimiters, and what is given here.

    Args:
        source: any that `read` takes.
        patterns: more patterns by name: booleans `[queries, keys]` or `[examples, queries, keys]`, or a function from a
            `Layer` to such, or to None where it does not apply.
        pairs: labeled pairs by name, as `labeled_pairs` makes them. Layers of other sizes are left out.
        least: the smallest score that gives a label.
        **choices: those of `read`, such as `tokens`, `valid`, `mask` and `layers`.

    Returns:
        `Heads`, in the order of layers.

    Raises:
        ValueError: as `read` does; a pattern has another shape; pairs fit no layer.

    >>> import numpy as np
    >>> from jattn import analysis
    >>> maps = np.stack([np.eye(4, k=-1) + np.eye(4)[:1].T * np.eye(4)[:1], np.full((4, 4), 0.25)])
    >>> analysis.describe([maps], tokens=["a", "b", "c", "d"])
    pattern   best head  score  above the next head
    previous  0 0        1.00   1.00
    next      0 1        0.00   0.33
    current   0 0        0.00   0.00
    first     0 0        0.33   0.33
    <BLANKLINE>
    layer  head  label     score  above  runner-up  entropy  confidence  distance  sink
    0      0     previous  1.00   0.67   first      0.00     1.00        0.75      0.50
    0      1     -         0.00   0.00   next       1.39     0.25        1.25      0.25
    no query has both a key of duplicate, induction or delimiter and another that it may attend to
    """
    for name, one in {"patterns": patterns, "pairs": pairs}.items():
        if not isinstance(one, Mapping | None):
            raise ValueError(f"`{name}` must be a mapping from names, such as {{'mine': ...}}; got {described(one)}.")
    if type(least) not in (int, float) or not np.isfinite(least):
        raise ValueError(f"`least` must be a finite number; got {least!r}.")
    maps = read(source, **choices)
    extra, labeled = dict(patterns or {}), dict(pairs or {})
    for name, one in labeled.items():
        _check_pairs(name, one, maps)
    for name in extra.keys() & {*PATTERNS, *labeled} | (labeled.keys() & {*PATTERNS}):
        raise ValueError(f"`patterns` and `pairs` must have names of their own; got {name!r} twice.")
    offsets = {name: best_offset(one)[1] for name, one in labeled.items()}
    compiled, made, heads, met, asked = jax.jit(_scores), {}, [], set(), set()
    for number, layer in enumerate(maps):
        key = (layer.queries, layer.shape, layer.query_tokens, layer.key_tokens, layer.positions is None)
        if key not in made:
            made = {key: _named_patterns(layer)}  # only the last: layers with the same tokens follow each other
        wanted = {**made[key], **_extra_patterns(extra, layer)}
        weights, counted = layer.weights, layer.counted
        where = np.ones((1, 1, 1, 1), bool) if counted is None else counted
        # As `layer.may_attend`, which would convert the weights once more.
        may = layer.mask if layer.mask is not None else (weights != 0).any(1, keepdims=True)
        fitting = {name: one for name, one in labeled.items() if _fits(one, layer)}
        scored, known = jax.tree.map(np.asarray, compiled(weights, where, may, wanted, layer.positions))
        right = {name: np.asarray(pair_accuracy(weights, one, where)) for name, one in fitting.items()}
        scores = {name: scored[name][0] for name in wanted if scored[name][1]}
        scores |= {name: (found - offsets[name]) / max(1 - offsets[name], 1e-9) for name, found in right.items()}
        asked |= scored.keys()
        met |= scores.keys()
        for place, head in enumerate(layer.heads):
            own = {name: float(found[place]) for name, found in scores.items()}
            accuracy = {name: (float(found[place]), offsets[name]) for name, found in right.items()}
            measured = {name: float(found[place]) for name, found in known.items()}
            finite = bool(np.isfinite(weights[:, place]).all())
            heads.append(_labeled(layer.name, number, head, own, accuracy, measured, least, finite))
    notes = maps.notes()
    if missing := [name for name in (*PATTERNS, *extra) if name in asked - met]:
        names = missing[0] if len(missing) == 1 else f"{', '.join(missing[:-1])} or {missing[-1]}"
        notes.append(f"no query has both a key of {names} and another that it may attend to")
    return Heads(tuple(heads), tuple(notes))


def _labeled(
    layer: str,
    number: int,
    head: int,
    scores: dict[str, float],
    accuracy: dict[str, tuple[float, float]],
    measures: dict[str, float],
    least: float,
    finite: bool,
) -> Head:
    order = sorted(scores, key=lambda name: -round(scores[name], 4))  # scores that nearly tie keep their order
    first, second = [*order, "-", "-"][:2]
    score = scores.get(first, 0.0)
    margin = score - scores.get(second, 0.0)
    label = "NaN" if not finite else first if score >= least else "-"
    return Head(layer, number, head, label, score, second, margin, scores, accuracy, measures)


def _scores(weights: Any, where: Any, may: Any, pairs: dict[str, Any], places: Any) -> Any:
    """For each pattern the scores `[heads]` and whether any query has a choice; and the measures."""
    may = jnp.broadcast_to(may & where, (weights.shape[0], *jnp.broadcast_shapes(may.shape, where.shape)[1:]))

    def score(one: jax.Array) -> tuple[jax.Array, jax.Array]:
        choice = has_choice(one, may)
        share = pattern_share(weights, one, where & choice)
        even = chance(one, may & choice)
        return (share - even) / jnp.maximum(1 - even, 1e-6), choice.any()

    scores = {}
    if pairs:  # one program for all patterns, in turn: it compiles as fast as that of one
        every = jnp.stack([jnp.broadcast_to(one, (len(weights), *one.shape[1:])) for one in pairs.values()])
        scores = dict(zip(pairs, zip(*jax.lax.map(score, every), strict=True), strict=True))
    measures = {name: function(weights, where) for name, function in SIMPLE.items()}
    measures["distance"] = jnp.full(weights.shape[1], jnp.nan)
    if places is not None:
        measures["distance"] = mean_distance(weights, where, queries=places)
    return scores, measures


SIMPLE: dict[str, Callable[..., Any]] = {"entropy": entropy, "confidence": confidence, "sink": sink_score}


def _named_patterns(layer: Layer) -> dict[str, Any]:
    """The patterns that apply to a layer, `[examples or 1, queries, keys]`."""
    batch, _, queries, keys = layer.shape
    places, ends, words = layer.positions, None, None
    if layer.key_tokens is not None:
        kinds = [token_kinds(row) for row in layer.key_tokens]
        ends = np.stack([one["special"] | one["punctuation"] for one in kinds])
        _, words = np.unique(np.array(layer.key_tokens), return_inverse=True)
        words = words.reshape(batch, keys).astype(np.int32)
    if places is not None:
        made = _patterns_of_places(places, np.zeros((1, keys), np.int32), words, ends)
        return {name: made[name] for name in PATTERNS if name in made}  # what `jit` returns is in alphabetic order
    found = {"first": np.broadcast_to(np.arange(keys) == 0, (1, queries, keys))}
    return found if ends is None else {**found, "delimiter": np.broadcast_to(ends[:, None], (batch, queries, keys))}


@jax.jit
def _patterns_of_places(places: Any, nothing: Any, words: Any, ends: Any) -> dict[str, Any]:
    found = {name: pattern(name, nothing, queries=places) for name in PLACES}
    if words is None:
        return found
    return found | {name: pattern(name, words, queries=places, delimiters=ends) for name in WORDS}


def _extra_patterns(extra: Mapping[str, Any], layer: Layer) -> dict[str, Any]:
    batch, _, queries, keys = layer.shape
    found = {}
    for name, one in extra.items():
        array: Any = one(layer) if callable(one) else one
        if array is None:
            continue
        shape = np.shape(array)
        if (
            len(shape) not in (2, 3)
            or shape[-2:] != (queries, keys)
            or (len(shape) == 3 and shape[0] not in (1, batch))
        ):
            raise ValueError(
                f"`patterns[{name!r}]` must be booleans [{queries}, {keys}] or [{batch}, {queries}, {keys}] for "
                f"{layer.name!r}; got {described(array)}. A function may return None for layers that it is not for."
            )
        found[name] = np.asarray(booleans(f"patterns[{name!r}]", array, "[queries, keys]")).reshape(-1, queries, keys)
    return found


def _check_pairs(name: str, pairs: Any, maps: Maps) -> None:
    if not isinstance(pairs, Pairs):
        raise ValueError(f"`pairs[{name!r}]` must be `Pairs`, as `labeled_pairs` makes them; got {described(pairs)}.")
    if not any(_fits(pairs, layer) for layer in maps):
        sizes = listed([str([layer.shape[0], *layer.shape[2:]]) for layer in maps], 4)
        raise ValueError(
            f"`pairs[{name!r}]` must have the [examples, queries, keys] of some layer, such as {sizes}; got "
            f"{list(pairs.right.shape)}."
        )


def _fits(pairs: Pairs, layer: Layer) -> bool:
    return pairs.right.shape == (layer.shape[0], *layer.shape[2:])
