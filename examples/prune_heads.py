"""A small transformer grows induction heads; pruning closes most of its heads, and the best induction head last.

    pip install -e '.[examples]'               # in a clone of the repository
    python examples/prune_heads.py             # half a minute on a CPU

Two layers of attention, without feed-forward networks, learn sequences of random tokens that repeat after 8 to 16
tokens. Nothing but the repetition says what comes next, so the model has to find what followed a token the last time:
a head of the first layer attends to the previous token, and one of the second to the token behind an earlier
occurrence (Olsson et al. 2022, arXiv:2209.11895). In the second half of the training each head has a gate, and open
gates cost (Voita et al. 2019, arXiv:1905.09418): three or four of eight heads stay open. Then heads are closed one
after another, the least important first by the gradients of their gates (Michel et al. 2019, arXiv:1905.10650). Prints
the gates, what each head does by its maps alone, and the loss after closing each.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from shared.flags import at_least, positive

import jattn.nnx
from jattn import analysis

VOCABULARY, WIDTH, HEADS, LENGTH = 32, 64, 4, 40


class Block(nnx.Module):
    """x = x + attention(norm(x))"""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = jattn.nnx.MultiHeadAttention(
            WIDTH, HEADS, mask=jattn.masks.Causal(), rotary=True, use_bias=False, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(self.norm(x))


class Model(nnx.Module):
    """Tokens `[batch, length]` -> logits `[batch, length, vocabulary]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


def draw(key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
    """Sequences, and how many tokens of each come before it repeats."""
    tokens_key, period_key = jax.random.split(key)
    period = jax.random.randint(period_key, (batch,), 8, 17)
    once = analysis.repeated_tokens(tokens_key, batch, 16, VOCABULARY, times=1)
    return jnp.take_along_axis(once, jnp.arange(LENGTH) % period[:, None], axis=1), period


def loss_of(model: Model, tokens: jax.Array, period: jax.Array) -> jax.Array:
    """The mean loss of the tokens that can be known."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model(tokens)[:, :-1], tokens[:, 1:])
    known = jnp.arange(1, LENGTH) >= period[:, None] + 1
    return (losses * known).sum() / known.sum()


def gated(model: Model, gates: Any) -> Model:
    """The model with a gate on the output of each head, `[layers, heads]`."""
    definition, parameters = nnx.split(model)
    model = nnx.merge(definition, parameters)
    for block, row in zip(model.blocks, gates, strict=True):
        block.attention.out.kernel = nnx.Param(analysis.gate_outputs(block.attention.out.kernel[...], row))
    return model


def train(steps: int, seed: int, penalty: float) -> tuple[Model, jax.Array]:
    """A trained model, and its gates, of which half of the steps close those that are not needed."""
    definition, parameters = nnx.split(Model(nnx.Rngs(seed)), nnx.Param)
    log_alpha = jnp.full((2, HEADS), 2.0)
    rates = {"model": 3e-3, "gates": 5e-2}
    label = ("model", "gates")
    optimizer = optax.multi_transform({name: optax.adam(rate) for name, rate in rates.items()}, label)

    def loss(trained, key, penalty):
        parameters, log_alpha = trained
        gate_key, key = jax.random.split(key)
        gates = jnp.where(penalty > 0, analysis.hard_concrete(gate_key, log_alpha), 1)
        model = gated(nnx.merge(definition, parameters), gates)
        return loss_of(model, *draw(key, 32)) + penalty * analysis.open_probability(log_alpha).sum()

    def step(carry, given):
        trained, state = carry
        updates, state = optimizer.update(jax.grad(loss)(trained, *given), state)
        return (optax.apply_updates(trained, updates), state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    penalties = jnp.where(jnp.arange(steps) < steps // 2, 0.0, penalty)
    trained = (parameters, log_alpha)
    (trained, _), _ = jax.jit(lambda *given: jax.lax.scan(step, *given))(
        (trained, optimizer.init(trained)), (keys, penalties)
    )
    return nnx.merge(definition, trained[0]), analysis.settled_gates(trained[1])


def looked_inside(model: Model, seed: int = 1) -> tuple[analysis.Heads, list[tuple[tuple[str, int] | None, float]]]:
    """What each head does, and the loss as heads are closed, the least important first."""
    tokens, period = draw(jax.random.key(seed), 16)
    _, seen = nnx.jit(jattn.recorded(lambda model: loss_of(model, tokens, period), gradients=True))(model)
    words = [[str(token) for token in row] for row in np.asarray(tokens)]
    heads = analysis.describe(seen, tokens=words, mask=jattn.masks.Causal())
    importance = {name: analysis.head_importance(seen[name], seen.gradients[name]) for name in seen}
    run = nnx.jit(lambda model, gates: loss_of(gated(model, gates), tokens, period))
    closing = analysis.pruned(
        lambda gates: run(model, jnp.stack(list(gates.values()))), analysis.rank_heads(importance)
    )
    return heads, list(closing)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns the best scores, how many heads stay open, and whether the best ones close last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=positive, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--penalty", type=at_least(0), default=0.3, help="on each open head")
    given = parser.parse_args(arguments)

    model, gates = train(given.steps, given.seed, given.penalty)
    print(f"gates of both layers:\n{gates.round(2)}\n")
    heads, curve = looked_inside(gated(model, gates))
    print(heads)
    print("\nclosed                 loss")
    for head, loss in curve:
        print(f"{'none' if head is None else ' '.join(map(str, head)):21}  {loss:.3f}")
    best = {name: heads.best(name).scores[name] for name in ("previous", "induction")}
    last = dict(head for head, _ in curve if head is not None)  # of each layer
    kept = all(last[heads.best(name).layer] == heads.best(name).head for name in best)
    return best | {"loss": curve[0][1], "open": float((gates > 0).sum()), "best heads close last": float(kept)}


if __name__ == "__main__":
    main()
