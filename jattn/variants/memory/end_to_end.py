"""End-to-end memory networks (Sukhbaatar et al. 2015): a question reads a set of facts in several hops."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_choice, check_number, check_positive
from ...foundation.arrays import known_range
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, kernel, normal
from ...layers.layer import Parameter as Declared
from ...masks import Dense
from ...ops.attention.api import attention
from ...similarities import Dot


def memory_hops(
    question: jax.Array,
    keys: Sequence[jax.Array],
    values: Sequence[jax.Array],
    *,
    between: jax.Array | None = None,
    real: jax.Array | None = None,
) -> jax.Array:
    """Apply u <- H u + Σ_i softmax_i(u·m_i) c_i once for each pair of keys and values.

    Sukhbaatar et al. 2015 (arXiv:1503.08895). Every hop is `jattn.attention` with a single query and `Dot()`.

    Args:
        question: u `[..., features]`.
        keys: m of each hop, `[..., facts, features]`.
        values: c of each hop, `[..., facts, features]`.
        between: H `[features, features]`, for layerwise tying; by default the identity.
        real: booleans `[..., facts]`, False for padding; by default all True. A question without facts reads 0.

    Returns:
        `[..., features]`.

    Raises:
        ValueError: shapes do not match; there is no hop; the numbers of keys and values differ.

    >>> import jax.numpy as jnp
    >>> facts = 9 * jnp.eye(3)
    >>> print(memory_hops(facts[0], [facts], [jnp.arange(9.0).reshape(3, 3)]))
    [9. 1. 2.]
    """
    if between is not None:
        check_shapes(question=(question, "... features"), between=(between, "features features"))
    for name, given in (("keys", keys), ("values", values)):
        if not isinstance(given, Sequence):
            raise ValueError(f"`{name}` must be a list of arrays, one for each hop; got {type(given).__name__}.")
    if not keys or len(keys) != len(values):
        raise ValueError(f"`keys` and `values` must have one array for each hop; got {len(keys)} and {len(values)}.")
    mask = None
    if real is not None:
        check_shapes(kind=jnp.bool_, real=(real, "... facts"))
        mask = Dense(real[..., None, None, :])
    for hop, (key, value) in enumerate(zip(keys, values, strict=True)):
        check_shapes(
            {} if real is None else {"facts": real.shape[-1]},
            question=(question, "... features"),
            **{f"keys[{hop}]": (key, "... facts features"), f"values[{hop}]": (value, "... facts features")},
        )
        as_heads = (given[..., None, :] for given in (question[..., None, :], key, value))
        read = attention(*as_heads, mask=mask, similarity=Dot())[..., 0, 0, :]
        question = (question if between is None else question @ between) + read
    return question


def position_encoding(present: jax.Array, features: int) -> jax.Array:
    """l_kj = (1 - j/J) - (k/d)(1 - 2j/J), for word j of a sentence of J words and feature k of d, both from 1.

    Args:
        present: booleans `[..., words]`, True for the words, which come first; J is their number.
        features: d.

    Returns:
        `[..., words, features]`, float32.

    Raises:
        ValueError: `present` is not a boolean array; `features` is below 1.

    >>> import jax.numpy as jnp
    >>> print(position_encoding(jnp.array([True, True]), 2))
    [[0.5 0.5]
     [0.5 1. ]]
    """
    check_shapes(kind=jnp.bool_, present=(present, "... words"))
    check_positive(features=features)
    count = jnp.maximum(present.sum(-1), 1)[..., None, None]
    word = jnp.arange(1, present.shape[-1] + 1)[:, None] / count
    feature = jnp.arange(1, features + 1) / features
    return (1 - word) - feature * (1 - 2 * word)


@dataclasses.dataclass(frozen=True)
class MemoryNetwork(Layer):
    """End-to-end memory network: answers a question about a story of sentences by reading it `hops` times.

        m_i = Σ_j l_j ∘ A x_ij + T_A(i),  c_i = Σ_j l_j ∘ C x_ij + T_C(i),  u = Σ_j l_j ∘ B q_j
        u <- u + Σ_i softmax_i(u·m_i) c_i, hops times;  answer = W u

    Sukhbaatar, Szlam, Weston & Fergus 2015 (arXiv:1503.08895), with T(i) a learned vector for the sentence's age, which
    is 0 for the last one. Tying, as in section 2.2: `"adjacent"`, A of a hop is C of the previous hop, B is the first
    A, and Wᵀ the last C; `"layerwise"`, one A and one C for all hops, and u <- H u + ... between them. Empty sentences
    (all padding) are masked out. Word 0 is padding.

    Demonstrated in `examples/experiments/memory_network.py`.

    Args:
        words: size of the vocabulary, padding included.
        features: features of u.
        hops: number of readings.
        sentences: the largest number of sentences of a story.
        tying: `"adjacent"` or `"layerwise"`.
        encoding: `"position"` (l as in `position_encoding`) or `"bag"` (l = 1).
        standard_deviation: standard deviation of the initial embeddings; the paper's is 0.1. A larger one starts with
            sharper attention.

    Raises:
        ValueError: a size is below 1; `tying` or `encoding` is unknown; the standard deviation is negative; at the
            call, a story has too many sentences, word ids are not integers or exceed the vocabulary, shapes do not
            match.

    >>> import jax, jax.numpy as jnp
    >>> layer = MemoryNetwork(words=20, features=8, hops=3, sentences=10)
    >>> story, question = jnp.ones((2, 10, 4), int), jnp.ones((2, 3), int)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), story, question).shape
    (2, 20)
    """

    own_axes = OWN_AXES

    words: int
    features: int
    hops: int = 3
    sentences: int = 50
    tying: str = "adjacent"
    encoding: str = "position"
    standard_deviation: float = 0.1

    def __post_init__(self):
        check_positive(words=self.words, features=self.features, hops=self.hops, sentences=self.sentences)
        check_choice("tying", self.tying, ("adjacent", "layerwise"))
        check_choice("encoding", self.encoding, ("position", "bag"))
        check_number("standard_deviation", self.standard_deviation, 0)

    def parameters(self) -> dict[str, Any]:
        """`embedding.N` and `age.N` for each matrix in turn (A first), plus what layerwise tying needs.

        Adjacent: hops + 1 of each. Layerwise: 0 is A, 1 is C; `question.embedding` B, `between.kernel` H and
        `answer.kernel` W.
        """
        matrices = self.hops + 1 if self.tying == "adjacent" else 2
        embedding = Declared((self.words, self.features), normal(self.standard_deviation), 0)
        tree: dict[str, Any] = {
            "embedding": {str(n): embedding for n in range(matrices)},
            "age": {str(n): Declared((self.sentences, self.features), normal(0.1), 0) for n in range(matrices)},
        }
        if self.tying == "layerwise":
            tree["question"] = {"embedding": embedding}
            tree["between"] = {"kernel": kernel(self.features, self.features)}
            tree["answer"] = {"kernel": kernel(self.features, self.words)}
        return tree

    def __call__(self, parameters: Mapping[str, Any], story: jax.Array, question: jax.Array) -> jax.Array:
        """Logits `[..., words]`.

        Args:
            parameters: the layer's parameters.
            story: word ids `[..., sentences, words of a sentence]`, in order, with 0 after the end of a sentence. Ids
                that are not known at trace time are not checked.
            question: word ids `[..., words of a question]`.
        """
        check_shapes(
            kind=jnp.integer, story=(story, "... sentences sentence_words"), question=(question, "... question_words")
        )
        for name, ids in (("story", story), ("question", question)):
            least, most = known_range(ids) or (0, 0)
            if least < 0 or most >= self.words:
                raise ValueError(
                    f"`{name}` must hold word ids from 0 to {self.words - 1}; got {least} to {most}. The layer has "
                    f"`words` = {self.words}, padding included."
                )
        if story.shape[-2] > self.sentences:
            raise ValueError(f"`story` must have at most {self.sentences} sentences; got {story.shape[-2]}.")
        real = (story != 0).any(-1)
        after = jnp.flip(jnp.cumsum(jnp.flip(real, -1), -1), -1) - real
        matrices = len(parameters["embedding"])
        told = [
            self.encode(parameters["embedding"][str(n)], story) + parameters["age"][str(n)][after]
            for n in range(matrices)
        ]
        if self.tying == "adjacent":
            asked = self.encode(parameters["embedding"]["0"], question)
            read = memory_hops(asked, told[:-1], told[1:], real=real)
            return read @ parameters["embedding"][str(self.hops)].T
        asked = self.encode(parameters["question"]["embedding"], question)
        between = parameters["between"]["kernel"]
        read = memory_hops(asked, told[:1] * self.hops, told[1:] * self.hops, between=between, real=real)
        return read @ parameters["answer"]["kernel"]

    def encode(self, embedding: jax.Array, words: jax.Array) -> jax.Array:
        """Sentences `[..., words]` as vectors `[..., features]`."""
        present = words != 0
        vectors = jnp.where(present[..., None], embedding[words], 0)
        if self.encoding == "position":
            vectors = vectors * position_encoding(present, self.features).astype(vectors.dtype)
        return vectors.sum(-2)
