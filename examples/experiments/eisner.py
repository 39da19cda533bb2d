"""Trees repair noisy arcs: a word's parent by projective marginals, against the best arc of each word alone.

Data: random projective trees of 10 words; what is seen of an arc is unit normal noise, plus a margin of 2 on the arcs
of the tree. Nothing is learned: an arc's score is how much likelier the seen number is on the tree than off it, in
logs, which is 2 times the number and a constant. The figure is the share of words whose most probable parent is the
true one, the root among the choices; softmax over parents, without the tree, has the same scores.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from report import Result, main

from jattn.variants.structured import nonprojective_marginals, projective_marginals

LENGTH, MARGIN = 10, 2.0


def random_tree(rng, low, high, parent, parents):
    """Words [low, high) below `parent`: a head among them, and trees to its left and right; the root is LENGTH."""
    if low < high:
        head = int(rng.integers(low, high))
        parents[head] = parent
        random_tree(rng, low, head, head, parents)
        random_tree(rng, head + 1, high, head, parents)


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The share of parents found."""
    rng = np.random.default_rng(seed)
    parents = np.zeros((200 if fast else 2000, LENGTH), int)
    for row in parents:
        random_tree(rng, 0, LENGTH, LENGTH, row)
    true = np.arange(LENGTH + 1)[:, None] == parents[:, None]
    scores = MARGIN * (MARGIN * true + rng.normal(size=true.shape))
    scores[:, np.arange(LENGTH), np.arange(LENGTH)] = -np.inf  # no word is its own parent
    scores = jnp.asarray(scores, jnp.float32)

    def share(weights):
        return float((np.asarray(weights).argmax(-2) == parents).mean())

    @jax.jit
    def whole(scores):
        return [
            jnp.concatenate([found.arcs, found.roots[..., None, :]], -2)
            for marginals in (projective_marginals, nonprojective_marginals)
            for found in [marginals(scores[..., :-1, :], scores[..., -1, :])]
        ]

    projective, free = map(share, whole(scores))
    alone = share(jax.nn.softmax(scores, -2))
    return [
        Result("parents found", projective, alone, "softmax", 0.82),
        Result("trees free to cross", free, alone, "softmax", 0.67),
    ]


if __name__ == "__main__":
    main(run, __doc__)
