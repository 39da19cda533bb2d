"""Questions that need two facts: a memory network with one hop fails, three hops answer them.

Data: in a story, in random order, each of 4 people holds a thing and is in a place ("bob holds ball", "bob is in
park"). The question is where a thing is. The answer first needs the person, whom the question does not name. Guessing
one of the 4 places of the story is chance.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

from jattn.variants.memory import MemoryNetwork

PEOPLE, KINDS = 4, 8
HOLDS, IS_IN, WHERE = 1, 2, 3
PERSON, THING, PLACE = 4, 4 + KINDS, 4 + 2 * KINDS
WORDS = 4 + 3 * KINDS


def story(key):
    """A story `[2 PEOPLE, 3]`, its question `[2]`, and the word of the answer."""
    keys = jax.random.split(key, 4)
    people, things, places = (
        start + jax.random.choice(key, KINDS, (PEOPLE,), replace=False)
        for start, key in zip((PERSON, THING, PLACE), keys[:3], strict=True)
    )
    holds = jnp.stack([people, jnp.full(PEOPLE, HOLDS), things], -1)
    is_in = jnp.stack([people, jnp.full(PEOPLE, IS_IN), places], -1)
    order, which = jax.random.split(keys[3])
    told = jax.random.permutation(order, jnp.concatenate([holds, is_in]))
    asked = jax.random.randint(which, (), 0, PEOPLE)
    return told, jnp.stack([jnp.array(WHERE), things[asked]]), places[asked]


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The accuracy of networks with three hops and one hop."""
    first_key, test_key, train_key = jax.random.split(jax.random.key(seed), 3)
    stories = jax.vmap(story)
    test = stories(jax.random.split(test_key, 1000))
    steps = 200 if fast else 800
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.01, steps)))

    def trained(hops):
        network = MemoryNetwork(words=WORDS, features=64, hops=hops, sentences=2 * PEOPLE, standard_deviation=0.4)

        def loss(parameters, told, question, answer):
            logits = network(parameters, told, question)
            return optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean()

        def step(state, key):
            parameters, moments = state
            gradient = jax.grad(loss)(parameters, *stories(jax.random.split(key, 64)))
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, updates), moments), None

        @jax.jit
        def train(parameters):
            keys = jax.random.split(train_key, steps)
            return jax.lax.scan(step, (parameters, optimizer.init(parameters)), keys)[0][0]

        logits = network(train(network.init(first_key)), *test[:2])
        return float((logits.argmax(-1) == test[2]).mean())

    return [Result("accuracy with three hops", trained(3), trained(1), "one hop", 0.7 if fast else 0.95)]


if __name__ == "__main__":
    main(run, __doc__)
