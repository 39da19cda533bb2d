"""How different heads are: Jensen-Shannon distances, and a map of heads in which these are distances.

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2,        d(h, g) = √ mean_i JS(A_hi, A_gi)

H is the entropy. The square root makes it a metric, and one of points in a Euclidean space (Fuglede & Topsøe 2004), so
classical scaling loses nothing but the axes that it leaves out. Clark et al. 2019 (arXiv:1906.04341) add the
divergences up and embed heads likewise.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from ..foundation.arguments import check_positive
from ..foundation.arrays import as_array, describe, dtype_of
from .maps import Maps
from .rows import checked, probabilities


def head_distances(left: Any, right: Any, where: Any = None) -> jax.Array:
    """d(h, g) of each head h of one layer and each head g of another, between 0 and √log 2.

    Args:
        left: weights `[..., heads, queries, keys]`.
        right: weights of the same sizes, but for the number of heads.
        where: booleans that broadcast with both: pairs that count.

    Returns:
        `[heads of left, heads of right]`, float32.

    Raises:
        ValueError: examples, queries or keys differ; there are no heads.

    >>> import numpy as np
    >>> a = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    >>> print((head_distances(a, a) ** 2).round(3))
    [[0.    0.347]
     [0.347 0.   ]]
    """
    (left, left_counts), (right, right_counts) = checked(left, where), checked(right, where)
    if left.shape[:-3] != right.shape[:-3] or left.shape[-2:] != right.shape[-2:]:
        raise ValueError(
            f"`left` and `right` must have the same examples, queries and keys; got {left.shape} and {right.shape}."
        )
    if 0 in (left.shape[-3], right.shape[-3]):
        raise ValueError(f"`left` and `right` must have at least one head; got {left.shape} and {right.shape}.")
    left, right = (probabilities(one).reshape(-1, *one.shape[-3:]) for one in (left, right))
    counts = [one.reshape(-1, *one.shape[-2:]) for one in (left_counts, right_counts)]
    own = entr(right).sum(-1)

    def from_one(head: tuple[jax.Array, jax.Array]) -> jax.Array:  # [batch, queries, keys], one at a time
        row, count = head
        middle = entr((row[:, None] + right) / 2).sum(-1)
        apart = jnp.maximum(middle - (entr(row).sum(-1)[:, None] + own) / 2, 0)
        both = count[:, None] & counts[1]
        mean = jnp.where(both, apart, 0).sum((0, 2)) / jnp.maximum(both.sum((0, 2)), 1)
        return jnp.where(mean == 0, 0, jnp.sqrt(jnp.where(mean == 0, 1, mean)))  # the gradient at 0 is not NaN

    return jax.lax.map(from_one, (left.swapaxes(0, 1), counts[0].swapaxes(0, 1)))


def distances(maps: Maps) -> np.ndarray:
    """The distances between all heads of all layers, `[heads, heads]`, in the order of the layers.

    Two layers are in memory at a time.

    Raises:
        ValueError: the layers have different queries or keys.
    """
    if not isinstance(maps, Maps):
        raise ValueError(f"`maps` must be `Maps`, as `jattn.analysis.read` makes them; got {describe(maps)}.")
    shapes = {(layer.shape[0], *layer.shape[2:]) for layer in maps}
    if len(shapes) != 1:
        raise ValueError(
            "`maps` must be of layers with the same examples, queries and keys, so that heads can be compared; got "
            f"[batch, queries, keys] of {sorted(shapes)}. Choose some: `maps.choose(layers=...)`."
        )
    compiled = jax.jit(head_distances)
    rows = []
    for number, layer in enumerate(maps):
        weights, where = layer.weights, layer.counted
        row = [np.asarray(compiled(weights, other.weights, where)) for other in maps[number:]]
        rows.append(row)
    count = len(rows)
    blocks = [[rows[i][j - i] if j >= i else rows[j][i - j].T for j in range(count)] for i in range(count)]
    return np.block(blocks)


def embedding(distances: Any, dimensions: int = 2) -> np.ndarray:
    """Points whose distances are as given, as far as so many dimensions allow.

        B = -½ J D² J = X Xᵀ,  J = I - 11ᵀ/n        X: eigenvectors of B, times the roots of the largest eigenvalues

    Classical multidimensional scaling (Torgerson 1952, doi:10.1007/BF02288916); D² is elementwise.

    Args:
        distances: symmetric, `[points, points]`.
        dimensions: of the points, at least 1.

    Returns:
        `[points, dimensions]`, with mean 0. Signs are such that the largest coordinate of each axis is positive.

    Raises:
        ValueError: `distances` is not symmetric, finite and nonnegative; `dimensions` is below 1.

    >>> import numpy as np
    >>> x = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    >>> found = embedding(np.linalg.norm(x[:, None] - x, axis=-1))
    >>> print(np.linalg.norm(found[:, None] - found, axis=-1).round(5))
    [[0. 3. 4.]
     [3. 0. 5.]
     [4. 5. 0.]]
    """
    check_positive(dimensions=dimensions)
    if dtype_of(as_array(distances)) is None:
        raise ValueError(f"`distances` must be a symmetric matrix [points, points]; got {describe(distances)}.")
    found = np.asarray(distances, np.float64)
    if not np.isfinite(found).all():
        raise ValueError("`distances` must be finite; got NaN or inf, as heads with NaN weights give.")
    square = found.ndim == 2 and found.size and found.shape[0] == found.shape[1]
    if not square or not np.allclose(found, found.T, atol=1e-5):
        raise ValueError(f"`distances` must be a symmetric matrix [points, points]; got {describe(distances)}.")
    if (found < 0).any():
        raise ValueError(f"`distances` must be at least 0; got {found.min():.3g}.")
    centered = found**2
    centered = -(centered - centered.mean(0) - centered.mean(1)[:, None] + centered.mean()) / 2
    values, vectors = np.linalg.eigh(centered)
    points = vectors[:, ::-1][:, :dimensions] * np.sqrt(np.maximum(values[::-1][:dimensions], 0))
    points = np.pad(points, ((0, 0), (0, dimensions - points.shape[1])))
    signs = np.sign(points[np.abs(points).argmax(0), np.arange(dimensions)])
    return points * np.where(signs == 0, 1, signs)
