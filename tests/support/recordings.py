"""Models and functions that attend in several ways, recorded by the tests of `jattn.record`."""

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

import jattn
import jattn.linen
import jattn.nnx

LENGTH, HEADS, FEATURES = 5, 2, 8
X = np.random.default_rng(0).normal(size=(2, LENGTH, FEATURES)).astype(np.float32)
CAUSAL = jattn.masks.Causal()


def heads(x):
    return x.reshape(*x.shape[:-1], HEADS, -1)


def attend(x, **options):
    return jattn.attention(heads(x), heads(x), heads(x), mask=CAUSAL, **options).reshape(x.shape)


LAYER = jattn.layers.MultiHeadAttention(FEATURES, HEADS, kv_heads=1, rotary=True, mask=CAUSAL)
PARAMETERS = LAYER.init(jax.random.key(0))


class Block(nnx.Module):
    """Attends in three ways: a layer of jattn, one of Flax, a function."""

    def __init__(self, rngs):
        self.own = jattn.nnx.MultiHeadAttention(FEATURES, HEADS, mask=CAUSAL, rngs=rngs)
        self.flax = nnx.MultiHeadAttention(
            HEADS, FEATURES, attention_fn=jattn.nnx.attention_fn(), decode=False, rngs=rngs
        )

    def __call__(self, x):
        x = x + self.own(x)
        x = x + self.flax(x, X)
        with jattn.named("by.hand"):
            return x + self.attend(x)

    def attend(self, x):
        return attend(x)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs), Block(rngs)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + jattn.linen.MultiHeadAttention(q_heads=HEADS, mask=CAUSAL, name="own")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, attention_fn=jattn.linen.attention_fn(), name="flax")(x, X)
        with jattn.named("by.hand"):
            return x + attend(x)


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return LinenBlock(name="last")(LinenBlock(name="first")(x))


MODEL = Model(nnx.Rngs(0))
LINEN = LinenModel()
VARIABLES = LINEN.init(jax.random.key(0), X)
NAMES = ("own", "flax", "by.hand")


def masked(x, mask=True, scale=None):
    """The definition: softmax(q·k / √dim), NumPy."""
    scores = np.einsum("bqhd,bkhd->bhqk", heads(x), heads(x)) / np.sqrt(x.shape[-1] / HEADS)
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


LOWER = np.tril(np.ones((LENGTH, LENGTH), bool))


def named_function(x):
    with jattn.named("decoder.3"), jattn.named("cross"):
        return attend(x)


def twice(x):
    return jattn.dot_product_attention(heads(x), heads(x), heads(x), is_causal=True), attend(x)
