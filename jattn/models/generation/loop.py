"""The compiled parts of generation: the prompts, then the loop over tokens, as one program or as one for each token."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from ...layers.caches import Spec
from .beam import BeamSearch
from .prompts import Prompts
from .sampling import Sampling
from .states import repeat_rows, with_pages


@dataclasses.dataclass(frozen=True)
class Memory:
    """Where keys and values are kept.

    Attributes:
        capacity: the largest number of tokens of a sequence.
        cache: as in `initial_state`.
        dtype: the dtype of keys and values.
    """

    capacity: int
    cache: str | Spec
    dtype: Any


@functools.partial(jax.jit, static_argnames=("graph", "memory", "repeats"))
def begin(
    graph: Any,
    parameters: Any,
    how: Sampling | BeamSearch,
    tokens: jax.Array,
    valid: jax.Array | None,
    source: tuple[Any, Any] | None,
    table: jax.Array | None,
    *,
    memory: Memory,
    repeats: int,
) -> Any:
    """The first token of each sequence.

    Args:
        graph, parameters: the model, split by `nnx.split`.
        how: how tokens are chosen.
        tokens: the prompts, `[batch, length]`.
        valid: which of their tokens are not padding.
        source: the inputs of an encoder and their `attention_mask`.
        table: the pages of each row of paged caches; None without. With a table, `tokens` have a row for each beam.
        memory: where keys and values are kept.
        repeats: how many beams each prompt has.

    Raises:
        ValueError: the encoder gives another number of examples; the model gives no logits of the vocabulary.
    """
    model = nnx.merge(graph, parameters)
    options = {}
    if source is not None:
        inputs, mask = source
        encoded = model.encode(inputs, attention_mask=mask)
        if encoded.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"`inputs` must be of as many examples as there are prompts, {tokens.shape[0]}; got {encoded.shape[0]}."
            )
        options = {"encoded": encoded, "encoded_mask": mask}
    state = model.initial_state(tokens.shape[0], memory.capacity, cache=memory.cache, dtype=memory.dtype, **options)
    if table is not None:
        state = with_pages(state, table)
    logits, state = model.prefill(tokens, state, valid=valid)
    if logits.shape != (tokens.shape[0], model.config.vocabulary):
        raise ValueError(
            "`model` must give the logits of the next token, such as `GPT2ForCausalLM`; what it gives for "
            f"{tokens.shape[0]} prompts and a vocabulary of {model.config.vocabulary} has the shape {logits.shape}."
        )
    if table is not None:
        return how.start(logits[::repeats], state)
    return how.start(logits, state if repeats == 1 else repeat_rows(state, repeats))


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="carry")
def finish(graph: Any, parameters: Any, how: Sampling | BeamSearch, carry: Any) -> Any:
    """All other tokens, up to the end of the last sequence.

    All of the carry is returned, the state of the model too: JAX can reuse a donated buffer only for a result.
    """

    def advance(carry: Any) -> Any:
        return how.advance(nnx.merge(graph, parameters), carry)

    return jax.lax.while_loop(how.proceeds, advance, carry)


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="carry")
def advance(graph: Any, parameters: Any, how: Sampling | BeamSearch, carry: Any) -> tuple[Any, jax.Array]:
    """The next token of each sequence, and whether there are more."""
    carry = how.advance(nnx.merge(graph, parameters), carry)
    return carry, how.proceeds(carry)


def run(
    model: Any,
    how: Sampling | BeamSearch,
    prompts: Prompts,
    source: tuple[Any, Any] | None,
    table: np.ndarray | None,
    memory: Memory,
    callback: Callable[[np.ndarray], Any] | None,
    progress: bool,
) -> tuple[jax.Array, ...]:
    """Tokens, lengths and scores.

    Args:
        model: the model.
        how: how tokens are chosen.
        prompts: the prompts.
        source, table, memory: as in `begin`.
        callback: called with the new tokens after each step.
        progress: whether to show a progress bar.
    """
    graph, parameters = nnx.split(nnx.view(model, deterministic=True, raise_if_not_found=False))
    repeats = how.beams if isinstance(how, BeamSearch) else 1
    if table is not None:
        prompts = prompts.repeated(repeats)
    carry = begin(graph, parameters, how, prompts.tokens, prompts.valid, source, table, memory=memory, repeats=repeats)
    if callback is None and not progress:
        return finish(graph, parameters, how, carry).found
    with _bar(how.new, progress) as tick:
        proceeds = how.proceeds(carry)
        while True:
            tick()
            if callback is not None:
                callback(np.asarray(carry.shown))
            if not proceeds:
                return carry.found
            carry, proceeds = advance(graph, parameters, how, carry)


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Any:
    """A function to call after each token.

    Raises:
        ValueError: a bar is asked for, and tqdm is not installed.
    """
    if not shown:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ValueError("`progress` needs the package tqdm: `pip install tqdm`.") from None
    with tqdm(total=total, unit="token") as bar:
        yield bar.update
