"""Beam search: several sequences for each prompt, extended together, of which the best are kept.

At every step there are `beams` running hypotheses y of each prompt, with the sums of their log probabilities

    s(y) = Σ_t log p(y_t | y_<t, prompt)

All extensions by a token are ranked by s. Of the best, those that end with a stop token become finished hypotheses if
they are among the first `beams`; the first `beams` of the others run on. Finished ones compete by

    score(y) = s(y) / length(y)^penalty                  length: new tokens, the stop token included

and the best `beams` are kept. The search for a prompt is over when there are `beams` finished hypotheses and no running
one is expected to beat the worst of them. `early_stopping` says what is expected, as in Hugging Face.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.numerics import widen
from .protocol import EncoderDecoder, GenerativeModel
from .sampling import is_one_of
from .states import reorder_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """The beams of each prompt.

    Attributes:
        count: how many tokens running hypotheses have, int32 `[]`.
        running: their tokens, int32 `[batch, beams, new]`.
        sums: s of each, float32 `[batch, beams]`, largest first.
        finished: the best hypotheses that have ended, like `running`.
        lengths: how many tokens each of these has, int32 `[batch, beams]`.
        scores: their scores, float32 `[batch, beams]`, largest first; -inf where there is none yet.
        open: whether the search for a prompt goes on, `[batch]`.
        proceeds: whether any does, `[]`.
        state: that of the model before the last running tokens, with `batch * beams` rows.
    """

    count: jax.Array
    running: jax.Array
    sums: jax.Array
    finished: jax.Array
    lengths: jax.Array
    scores: jax.Array
    open: jax.Array
    proceeds: jax.Array
    state: Any

    @property
    def found(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens, lengths and scores of the best of each prompt."""
        return self.finished[:, 0], self.lengths[:, 0], self.scores[:, 0]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["length_penalty", "stops_when_full", "to_the_end", "rules"],
    meta_fields=["new", "stop", "pad", "beams"],
)
@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Beam search as above: `start`, and then `advance` while it `proceeds`.

    Args:
        new: the largest number of tokens. Hypotheses end there.
        stop: tokens that end a hypothesis.
        pad: the token after its end.
        beams: how many hypotheses there are of each prompt.
        length_penalty: the exponent of the length, float32 `[]`. Above 0, longer ones are favored: sums are negative.
        stops_when_full: whether the search for a prompt is over once there are `beams` finished hypotheses. If not, it
            is over once the best running one, if it ended now, would not beat the worst of them.
        to_the_end: whether to compare the score that it would have at the best length for it, its sum staying the same,
            instead of the one if it ended now.
        rules: a `jattn.models.generation.rules.Rules`, which changes the log probabilities; or None.
    """

    new: int
    stop: tuple[int, ...]
    pad: int
    beams: int
    length_penalty: Any
    stops_when_full: Any
    to_the_end: Any
    rules: Any = None

    def start(self, logits: jax.Array, state: Any) -> Hypotheses:
        """The first tokens, by the logits `[batch, vocabulary]` of the prompts and a state of `batch * beams` rows."""
        each = (logits.shape[0], self.beams)
        none = jnp.full(each, -jnp.inf, jnp.float32)
        padding = jnp.full((*each, self.new), self.pad, jnp.int32)
        empty = Hypotheses(
            jnp.int32(0),
            padding,
            none.at[:, 0].set(0),  # beams are the same so far, so only the first has extensions
            padding,
            jnp.zeros(each, jnp.int32),
            none,
            jnp.ones(each[0], bool),
            jnp.bool(True),
            state,
        )
        return self._extended(empty, jnp.repeat(logits, self.beams, 0), state)

    def proceeds(self, hypotheses: Hypotheses) -> jax.Array:
        """Whether the search goes on for any prompt."""
        return hypotheses.proceeds

    def advance(self, model: GenerativeModel | EncoderDecoder, hypotheses: Hypotheses) -> Hypotheses:
        """The next token of each running hypothesis."""
        last = jax.lax.dynamic_index_in_dim(hypotheses.running, hypotheses.count - 1, 2, keepdims=False)
        return self._extended(hypotheses, *model.step(last.reshape(-1), hypotheses.state))

    def _extended(self, of: Hypotheses, logits: jax.Array, state: Any) -> Hypotheses:
        batch, vocabulary, count = of.sums.shape[0], logits.shape[-1], of.count + 1
        log_p = jax.nn.log_softmax(widen(logits), -1).astype(jnp.float32).reshape(batch, self.beams, vocabulary)
        if self.rules is not None:
            log_p = self.rules(log_p, of.running, of.count)
        # Each beam has one extension by each stop token: without all of these, `beams` extensions are left that run on.
        kept = self.beams * max(2, 1 + len(self.stop))
        sums, chosen = jax.lax.top_k((of.sums[..., None] + log_p).reshape(batch, -1), kept)
        beam, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice_in_dim(_pick(of.running, beam), token[..., None], of.count, 2)
        ends = is_one_of(token, self.stop) | (count == self.new)

        left, runs_on = jax.lax.top_k(jnp.where(ends, -jnp.inf, sums), self.beams)
        running, beam = _pick(tokens, runs_on), _pick(beam, runs_on)

        full = jnp.isfinite(of.scores).all(-1)
        accepts = of.open & ~(full & self.stops_when_full)
        enters = ends & (jnp.arange(kept) < self.beams) & accepts[:, None]
        scores = jnp.where(enters, sums / count.astype(jnp.float32) ** self.length_penalty, -jnp.inf)
        scores, best = jax.lax.top_k(jnp.concatenate([of.scores, scores], 1), self.beams)
        finished = _pick(jnp.concatenate([of.finished, tokens], 1), best)
        lengths = _pick(jnp.concatenate([of.lengths, jnp.full_like(token, count)], 1), best)

        open = of.open & self._may_improve(left[:, 0], scores, count)
        over = jnp.isfinite(scores).all() & self.stops_when_full
        rows = (jnp.arange(batch)[:, None] * self.beams + beam).reshape(-1)
        return Hypotheses(
            count,
            running,
            left,
            finished,
            lengths,
            scores,
            open,
            open.any() & ~over & ~ends.all(),
            reorder_rows(state, rows),
        )

    def _may_improve(self, best: jax.Array, scores: jax.Array, count: jax.Array) -> jax.Array:
        """Whether the best running hypothesis would beat the worst finished one, or there are not enough of these."""
        longest = self.to_the_end & (self.length_penalty > 0)
        length = jnp.where(longest, self.new, count).astype(jnp.float32)
        return best / length**self.length_penalty > scores.min(-1)


def _pick(of: jax.Array, index: jax.Array) -> jax.Array:
    """`of[b, index[b, i]]` for each row b."""
    return jnp.take_along_axis(of, index.reshape(*index.shape, *[1] * (of.ndim - 2)), 1)
