"""The two ways to record: a block around calls, and a function that also returns what it has seen."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ....foundation.arrays import describe
from ....foundation.stateful import on_copies
from ..observed import OBSERVER, observer_is
from .choice import Choice, Indices, Keep, Layers
from .gradients import Zero
from .recorder import Recorder
from .seen import Seen


class record:
    """Record the attention weights of what is called within a block: `with jattn.record() as seen: model(x)`.

        seen[name] = d ∘ normalizer(scores(similarity(q, k)) | mask)        d: dropout, if the call has it

    Works for every model that attends through jattn: `jattn.attention`, `dot_product_attention`, the layers of
    `jattn.nnx` and `jattn.linen`, and Flax's own with `attention_fn`. Attention runs as it would without, by its fast
    implementation. The weights are recomputed beside it, for the chosen layers, heads and queries only. Their last axis
    is over all keys; with a cache, over all of its places.

    Names are paths in the model that is called, such as `blocks.3.attention`, of nnx and linen modules; `jattn.named`
    gives others. A variant that attends several times, such as differential attention, has a name for each time.

    Nothing is recorded of `partial_attention`, whose weights depend on what it is merged with, nor of the variants made
    of it: local-p, memorizing and shared-prefix attention. Nor where there are no weights between a query and a key:
    linear attention, recurrences, convolutions, gates, attention-free layers other than AFT-full, marginals of
    structured attention. Nor of variants that compute weights of their own: pointers and coverage, neural Turing
    machines, hard and top-k attention, multi-token attention.

    Functions that JAX transforms are recorded by `jattn.recorded`. A block sees nothing inside a compiled function,
    such as `jattn.models.generate`: for the weights of a generated text, record a call of the model on that text.

    Args:
        layers: a name, a pattern of names such as `"decoder.*.cross"`, the number of a call (0 for the first), or
            several of these; a name includes everything below it. By default all.
        heads: indices of query heads; by default all.
        queries: indices (not positions) of queries, negative ones from the end; by default all.
        keep: one or several of "weights", "query" and "key". Products of the query and key are the scores: projections,
            rotary positions, normalization and the scale are already applied. `Record.besides` lists what else the
            weights depend on. `jattn.visualization.view` shows both in its neuron view, and computes the maps of long
            texts from `keep=("query", "key")`, whose memory is linear in the length.
        limit: the largest number of bytes of the record.

    Returns:
        A context manager that gives a `Seen`: a mapping from names to weights `[..., heads, queries, kv_len]`, float32
        (float64 for float64 inputs), complete when the block ends. Printing it shows a table. `seen.record(name)` has
        the rest: `query` `[..., heads, queries, features]`, `key` `[..., kv_heads, kv_len, features]`.

    Raises:
        ValueError: an argument is of the wrong kind; a layer, head or query does not exist; nothing attends; the record
            would be larger than `limit`; attention is called inside of a function that JAX transforms.

    >>> import jax, jattn, jattn.nnx
    >>> from flax import nnx
    >>> class Block(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.attention = jattn.nnx.MultiHeadAttention(16, 4, mask=jattn.masks.Causal(), rngs=rngs)
    ...
    ...     def __call__(self, x):
    ...         return x + self.attention(x)
    >>> model = nnx.Sequential(Block(nnx.Rngs(0)), Block(nnx.Rngs(1)))
    >>> with jattn.record(heads=[0, 2], queries=-1) as seen:
    ...     y = model(jax.numpy.ones((1, 5, 16)))
    >>> seen
    name                weights               heads  queries  keys  tokens
    layers.0.attention  float32[1, 2, 1, 5]   0, 2   -1       5     -
    layers.1.attention  float32[1, 2, 1, 5]   0, 2   -1       5     -
    2 recorded, 0.0 MiB
    """

    def __init__(
        self,
        *,
        layers: Layers = None,
        heads: Indices = None,
        queries: Indices = None,
        keep: Keep = "weights",
        limit: int = 2**30,
    ):
        self._choice = Choice.of(layers, heads, queries, limit, keep)
        self._active: list[tuple[Recorder, Any]] = []

    def __enter__(self) -> Seen:
        recorder = Recorder(self._choice, sys._getframe(1), OBSERVER.get())
        self._active.append((recorder, OBSERVER.set(recorder)))
        return recorder.seen

    def __exit__(self, kind: Any, *exception: Any) -> None:
        recorder, token = self._active.pop()
        OBSERVER.reset(token)
        if kind is None:
            recorder.finish()


def recorded(
    function: Callable[..., Any],
    *,
    layers: Layers = None,
    heads: Indices = None,
    queries: Indices = None,
    keep: Keep = "weights",
    gradients: bool | Callable[[Any], Any] = False,
    limit: int = 2**30,
) -> Callable[..., tuple[Any, Seen]]:
    """`function`, returning `(output, seen)`: its output, and the attention weights that `record` describes.

    `seen` is a pytree of arrays, so it leaves `jit`, `vmap`, `grad` (`has_aux=True`), `scan` and `shard_map` like any
    other result, if they are applied to the recorded function: `jax.jit(jattn.recorded(function))`. The weights are
    differentiable, so a loss may depend on them.

    With `gradients`, also the gradient of a loss L with respect to the weights A: with o = A v and its cotangent do,

        dL/dA_ij = do_i · v_j        where i may attend to j, 0 elsewhere,

    each weight taken as a variable of its own: what gradient x attention multiplies A with (Chefer et al. 2021,
    arXiv:2103.15679). Models of Flax NNX then run as copies, so the counters of their random keys do not advance.

    Args:
        function: a function, or a model that is called.
        layers, heads, queries, keep, limit: as in `record`.
        gradients: True if the output is the loss, or a function from the output to the loss, such as
            `lambda logits: logits[0, 3]`.

    Returns:
        A function of the same arguments. Of its `seen`, `gradients[name]` has the shape of `seen[name]`.

    Raises:
        ValueError: as in `record`; the loss is not a floating-point scalar.

    >>> import jax, jattn
    >>> x = jax.random.normal(jax.random.key(0), (5, 2, 4))
    >>> model = lambda x: jattn.attention(x, x, x, mask=jattn.masks.Causal())
    >>> out, seen = jax.jit(jattn.recorded(model, heads=0))(x)
    >>> seen["attention.0"].shape
    (1, 5, 5)
    >>> out, seen = jattn.recorded(model, gradients=lambda out: out[-1].sum())(x)
    >>> relevance = seen["attention.0"] * seen.gradients["attention.0"]
    """
    choice = Choice.of(layers, heads, queries, limit, keep)
    if not callable(function):
        raise ValueError(f"`function` must be a function or a model that attends; got {describe(function)}.")
    if not (isinstance(gradients, bool) or callable(gradients)):
        raise ValueError(
            f"`gradients` must be True, False, or a function from the output to the loss; got {describe(gradients)}."
        )
    if gradients is not False and "weights" not in choice.keep:
        raise ValueError(f"`keep` must have 'weights' for their `gradients`; got {keep!r}.")

    @functools.wraps(function, updated=())
    def run(*arguments: Any, **options: Any) -> tuple[Any, Seen]:
        start, parent = sys._getframe(), OBSERVER.get()
        if gradients is False:
            return _observed_by(Recorder(choice, start, parent), functools.partial(function, *arguments, **options))
        call = functools.partial(on_copies(function), *arguments, **options)
        like: list[Zero] = []
        jax.eval_shape(lambda: (_observed_by(Recorder(choice, start, None, like=like), call), ())[1])

        def loss(zeros: list[jax.Array]) -> tuple[jax.Array, Any]:
            out, seen = _observed_by(Recorder(choice, start, parent, zeros=zeros), call)
            return _scalar(gradients(out) if callable(gradients) else out, gradients is True), (out, seen)

        found, (out, seen) = jax.grad(loss, has_aux=True)([one.made() for one in like])
        records = zip(seen.records.items(), found, strict=True)
        return out, Seen({name: dataclasses.replace(record, gradient=one) for (name, record), one in records})

    return run


def _observed_by(recorder: Recorder, call: Callable[[], Any]) -> tuple[Any, Seen]:
    with observer_is(recorder):
        out = call()
    recorder.finish()
    return out, recorder.seen


def _scalar(loss: Any, output: bool) -> Any:
    """The loss, checked."""
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        what = "the output of `function`" if output else "what `gradients` returns"
        raise ValueError(
            f"{what} must be a floating-point scalar, the loss whose gradients are recorded; got {describe(loss)}. A "
            "function from the output to the loss may be given: `gradients=lambda out: out[0].sum()`."
        )
    return loss
