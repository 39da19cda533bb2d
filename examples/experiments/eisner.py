"""Trees repair noisy arcs: a word's parent from projective tree marginals, or from the best arc of each word alone.

Data: random projective trees of 10 words. Each possible arc has an observed number, standard normal noise plus a margin
of 2 if the arc is in the tree. Nothing is learned: an arc's score is the log-likelihood ratio of its number, which is 2
times the number plus a constant. The figure is the share of words whose most probable parent (the root included) is the
true one. The baseline is a softmax over parents with the same scores, without the tree.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from report import Result, main

from jattn.variants.structured import nonprojective_marginals, projective_marginals

LENGTH, MARGIN = 10, 2.0


def random_tree(rng, low, high, parent, parents):
    """Words [low, high) below `parent`: a head among them, and trees to its left and right. The root is LENGTH."""
    if low < high:
        head = int(rng.integers(low, high))
        parents[head] = parent
        random_tree(rng, low, head, head, parents)
        random_tree(rng, head + 1, high, head, parents)


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The share of correct parents."""
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
        Result("correct parents", projective, alone, "softmax", 0.82),
        Result("correct parents, non-projective", free, alone, "softmax", 0.67),
    ]


if __name__ == "__main__":
    main(run, __doc__)
