"""Trees: log Z and marginals are sums over all trees, found by enumerating all choices of parents."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows
from variant_layers import check_layer

from jattn.variants import structured
from jattn.variants.structured import SoftParents, soft_parents

KINDS = ("projective", "nonprojective")


@functools.cache
def trees(length, projective, single_root):
    """All trees as tuples of parents; the root is -1 and stands to the left of all."""
    found = []
    for parents in itertools.product(range(-1, length), repeat=length):
        if all(reaches_root(parents, word) for word in range(length)):
            if single_root and sum(parent == -1 for parent in parents) != 1:
                continue
            if projective and any(cross(a, b) for a, b in itertools.combinations(enumerate(parents), 2)):
                continue
            found.append(parents)
    return found


def reaches_root(parents, word):
    for _ in parents:
        word = parents[word]
        if word == -1:
            return True
    return False


def cross(one, other):
    (a, b), (c, d) = sorted(one), sorted(other)
    return a < c < b < d or c < a < d < b


def true_log_partition(arcs, roots, *, kind, single_root):
    with np.errstate(divide="ignore"):
        return np.log(math.fsum(weight for _, weight in weighed(arcs, roots, kind, single_root)))


def true_marginals(arcs, roots, *, kind, single_root):
    """`[parent, child]`, the root's row last."""
    n = len(roots)
    out, total = np.zeros((n + 1, n)), 0.0
    for parents, weight in weighed(arcs, roots, kind, single_root):
        out[list(parents), range(n)] += weight
        total += weight
    return out / total if total else out


def weighed(arcs, roots, kind, single_root):
    for parents in trees(len(roots), kind == "projective", single_root):
        score = sum(roots[child] if parent < 0 else arcs[parent, child] for child, parent in enumerate(parents))
        yield parents, np.exp(score)


@functools.cache
def compiled(name):
    return jax.jit(getattr(structured, name), static_argnames="single_root")


def log_partition(kind):
    return compiled(f"{kind}_log_partition")


def marginals(kind):
    return compiled(f"{kind}_marginals")


def stacked(found):
    return jnp.concatenate([found.arcs, found.roots[..., None, :]], -2)


each = pytest.mark.parametrize(
    ("kind", "single_root"),
    [
        *((kind, True) for kind in KINDS),
        *(pytest.param(kind, False, marks=pytest.mark.exhaustive) for kind in KINDS),
    ],
    ids=str,
)
one = pytest.mark.parametrize(
    ("kind", "single_root"),
    [
        ("nonprojective", True),
        *(
            pytest.param(*other, marks=pytest.mark.exhaustive)
            for other in (("projective", True), *((kind, False) for kind in KINDS))
        ),
    ],
    ids=str,
)
"""For what projective trees of one root are known by, the sums over all trees."""


@each
def test_log_partition_and_marginals_are_sums_over_trees(kind, single_root):
    """The gradient of marginals is the second derivative of log Z."""
    options = dict(single_root=single_root)
    arcs, roots = normal(0, (4, 4), (4,))
    truth = functools.partial(true_log_partition, kind=kind, single_root=single_root)
    check(lambda arcs, roots: log_partition(kind)(arcs, roots, **options), truth, arcs, roots)
    truth = functools.partial(true_marginals, kind=kind, single_root=single_root)
    check(lambda arcs, roots: stacked(marginals(kind)(arcs, roots, **options)), truth, arcs, roots)


@pytest.mark.exhaustive
@each
@pytest.mark.parametrize("length", rows([2, 5], ["5"]))
def test_other_lengths(kind, single_root, length):
    arcs, roots = normal(length, (length, length), (length,), spread=2.0)
    found = stacked(marginals(kind)(arcs, roots, single_root=single_root))
    close(found, true_marginals(arcs, roots, kind=kind, single_root=single_root), 1e-5)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


@each
def test_counts_of_trees(kind, single_root):
    """Cayley: n^(n-1) and (n+1)^(n-1); projective ones C(3n-2, n-1)/n and C(3n, n)/(2n+1)."""
    for n in (1, 9):
        want = {
            ("projective", True): math.comb(3 * n - 2, n - 1) / n,
            ("projective", False): math.comb(3 * n, n) / (2 * n + 1),
            ("nonprojective", True): n ** (n - 1),
            ("nonprojective", False): (n + 1) ** (n - 1),
        }[kind, single_root]
        np.testing.assert_allclose(
            log_partition(kind)(jnp.zeros((n, n)), single_root=single_root), np.log(want), rtol=1e-5, atol=1e-5
        )


@one
def test_examples_end_at_their_lengths_and_nan_behind_stays_there(kind, single_root):
    arcs, roots = normal(3, (2, 3, 5, 5), (2, 3, 5))
    lengths = np.array([[5, 1, 3], [0, 4, 2]])
    own = np.arange(5) < lengths[..., None]
    arcs_broken = np.where(own[..., None] & own[..., None, :] & ~np.eye(5, dtype=bool), arcs, np.nan)
    roots_broken = np.where(own, roots, np.nan)
    options = dict(single_root=single_root, lengths=jnp.asarray(lengths))
    found = marginals(kind)(arcs_broken, roots_broken, **options)
    for place in np.ndindex(2, 3):
        n = lengths[place]
        want = np.zeros((6, 5))
        if n:
            truth = true_marginals(arcs[place][:n, :n], roots[place][:n], kind=kind, single_root=single_root)
            want[:n, :n], want[-1, :n] = truth[:-1], truth[-1]
        close(stacked(found)[place], want, 1e-5)
    empty = log_partition(kind)(arcs_broken, roots_broken, **options)[1, 0]
    assert empty == (-np.inf if single_root else 0)
    gradients = jax.grad(lambda a, r: jnp.sin(marginals(kind)(a, r, **options).arcs).sum(), (0, 1))(
        arcs_broken, roots_broken
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.exhaustive
@one
def test_forbidden_arcs_and_sentences_without_a_tree(kind, single_root):
    """Hard constraints in all numbers, down to one tree and to none."""
    rng = np.random.default_rng(4)
    truths = {"none": 0, "some": 0}
    find = jax.jit(lambda a, r: marginals(kind)(a, r, single_root=single_root))
    again = jax.jit(jax.grad(lambda a: jnp.sin(marginals(kind)(a, jnp.zeros(4), single_root=single_root).arcs).sum()))
    for trial in range(60):
        arcs, roots = rng.normal(size=(4, 4)), rng.normal(size=4)
        share = (0.3, 0.6, 0.8)[trial % 3]
        arcs[rng.uniform(size=(4, 4)) < share] = -np.inf
        roots[rng.uniform(size=4) < 0.5] = -np.inf
        want = true_marginals(arcs, roots, kind=kind, single_root=single_root)
        truths["some" if want.any() else "none"] += 1
        close(stacked(find(arcs.astype(np.float32), roots.astype(np.float32))), want, 1e-5)
        assert np.isfinite(again(arcs)).all()
    assert min(truths.values()) >= 5, truths
    nothing = jnp.full((4, 4), -jnp.inf)
    assert log_partition(kind)(nothing, jnp.full(4, -jnp.inf), single_root=single_root) == -np.inf


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", rows(KINDS, ["nonprojective"]))
def test_memory_is_cubic_in_the_length(kind):
    def temporaries(length):
        arcs = jax.ShapeDtypeStruct((length, length), jnp.float32)
        run = jax.jit(getattr(structured, f"{kind}_marginals"))
        return run.lower(arcs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(128) < 9 * temporaries(64)  # quartic would be 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_near_cycle_of_heavy_arcs_is_exact(kind):
    """Two words that want each other: a floating-point determinant of the Laplacian would be 0."""
    arcs = jnp.array([[0.0, 40.0], [41.0, 0.0]])
    roots = jnp.array([-1.0, 2.0])
    found = marginals(kind)(arcs, roots)
    weights = np.exp(np.array([40.0 - 1, 41.0 + 2]) - 43)  # rooted at word 0, at word 1
    close(found.roots, weights / weights.sum(), 1e-5)


@pytest.mark.parametrize("kind", rows(KINDS, ["nonprojective"]))
def test_a_number_for_all_arcs_into_a_word_changes_nothing(kind):
    arcs, roots, shift = normal(6, (5, 5), (5,), (5,), spread=5.0)
    shifted = marginals(kind)(arcs + shift, roots + shift)
    close(stacked(shifted), stacked(marginals(kind)(arcs, roots)), 1e-4)


@pytest.mark.exhaustive
def test_margins_far_beyond_float32_leave_one_tree():
    n = 12
    arcs = np.zeros((n, n), np.float32)
    arcs[np.arange(n - 1), np.arange(1, n)] = 500.0
    for kind in KINDS:
        found = marginals(kind)(arcs)
        np.testing.assert_allclose(found.arcs[np.arange(n - 1), np.arange(1, n)], 1, atol=1e-4)


def test_soft_parents():
    arcs, states = normal(7, (3, 3), (3, 2))
    check(soft_parents, lambda p, h: p.T @ h, arcs, states)
    states[2] = np.nan
    np.testing.assert_allclose(
        soft_parents(arcs, states, lengths=2), np.asarray(arcs)[:2].T @ states[:2], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "single_root"),
    [("projective", True), pytest.param("nonprojective", False, marks=pytest.mark.exhaustive)],
)
def test_layer_is_its_definition(kind, single_root):
    layer = SoftParents(3, hidden=4, trees=kind, single_root=single_root)
    shapes = jax.tree.map(jnp.shape, layer.init(jax.random.key(0)))
    tree = jax.tree.structure(shapes, is_leaf=lambda x: isinstance(x, tuple))
    states, *leaves = normal(8, (3, 3), *jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)))

    def ours(states, *leaves):
        return layer(jax.tree.unflatten(tree, leaves), states)

    def truth(states, *leaves):
        given = jax.tree.unflatten(tree, leaves)
        parents = np.concatenate([states, given["root"]["state"][None]])
        hidden = (parents @ given["parent"]["kernel"])[:, None] + states @ given["child"]["kernel"]
        scores = np.tanh(hidden + given["pair"]["bias"]) @ given["pair"]["vector"]
        return true_marginals(scores[:-1], scores[-1], kind=kind, single_root=single_root).T @ parents

    check(ours, truth, states, *leaves)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", rows(KINDS, ["nonprojective"]))
def test_as_a_module(kind):
    (states,) = normal(9, (2, 4, 3))
    layer = SoftParents(3, hidden=5, trees=kind)
    out = check_layer(layer, jnp.asarray(states), lengths=jnp.array([4, 2]))
    np.testing.assert_array_equal(out[1, 2:], 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", rows(KINDS, ["projective"]))
def test_bfloat16_is_summed_in_float32(kind):
    arcs, roots = (jnp.asarray(x, jnp.bfloat16) for x in normal(10, (6, 6), (6,)))
    found = marginals(kind)(arcs, roots)
    assert found.arcs.dtype == jnp.float32
    close(stacked(found), stacked(marginals(kind)(arcs.astype(jnp.float32), roots.astype(jnp.float32))), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", rows([0, 1], ["0"]))
def test_no_words_and_one(kind, length):
    for single_root in (True, False):
        found = marginals(kind)(jnp.zeros((2, length, length)), single_root=single_root)
        assert found.arcs.shape == (2, length, length)
        np.testing.assert_array_equal(found.roots, 1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`single_root` must be True or False; got 'yes'"):
        SoftParents(4, hidden=3, single_root="yes")
    for kind in ("projective", "nonprojective"):
        with pytest.raises(ValueError, match="`single_root` must be True or False; got 1"):
            getattr(structured, f"{kind}_marginals")(jnp.zeros((3, 3)), single_root=1)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"`arcs` must have shape \[..., length, length\] with length = 3"):
            marginals(kind)(jnp.zeros((3, 4)))
        with pytest.raises(ValueError, match=r"`roots` must have shape \[..., length\] with length = 3, as in `arcs`"):
            marginals(kind)(jnp.zeros((3, 3)), jnp.zeros(4))
        with pytest.raises(ValueError, match="`lengths` must be at most 3"):
            getattr(structured, f"{kind}_log_partition")(jnp.zeros((3, 3)), lengths=4)
    with pytest.raises(ValueError, match="`trees` must be one of 'projective', 'nonprojective'; got 'eisner'"):
        SoftParents(3, hidden=4, trees="eisner")
    with pytest.raises(ValueError, match="`hidden` must be a positive int; got 0"):
        SoftParents(3, hidden=0)
    with pytest.raises(ValueError, match=r"`states` must have shape \[..., length, features\]"):
        soft_parents(jnp.zeros((3, 3)), jnp.zeros((4, 2)))
