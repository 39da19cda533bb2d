"""Invalid options of a layer are rejected at construction, in nnx and linen alike."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jattn.linen
import jattn.nnx
from jattn import masks
from jattn.layers import CausalAttention
from jattn.parallel import Heads

OPTIONS = {
    "a negative rate": (dict(dropout_rate=-0.1), r"`dropout_rate` must be a probability in \[0, 1\]; got -0.1"),
    "a rate beyond 1": (dict(dropout_rate=2.0), r"`dropout_rate` must be a probability in \[0, 1\]; got 2.0"),
    "a word for a rate": (dict(dropout_rate="a"), "`dropout_rate`.*'a'"),
    "a word for a rotation": (dict(rotary="yes"), "`rotary` must be True, False or a function.*'yes'"),
    "a mesh axis for Heads": (dict(parallel="model"), r"`parallel` must be `jattn.parallel.Heads\(...\)`.*'model'"),
    "a class for Heads": (dict(parallel=Heads), "`parallel`.*the class `Heads`"),
    "a word for a flag": (dict(use_bias="yes"), "`use_bias` must be True, False or names among.*; got 'yes'"),
    "a number for a flag": (dict(qk_norm=3), "`qk_norm` must be True, False or a.*; got 3"),
    "a word for a dtype": (dict(dtype="fp16"), "`dtype` must be a dtype, such as.*'fp16'"),
    "integers": (dict(param_dtype=int), "`param_dtype` must be floating-point"),
    "float8": (dict(dtype=jnp.float8_e4m3fn), "`dtype` must be floating-point, of at least 16 bits; got float8_e4m3fn"),
    "an initializer": (dict(kernel_init=3), "`kernel_init` must be a function of a key"),
    "an implementation": (dict(implementation="fast"), "`implementation` must be None.*'fast'"),
    "a class for a mask": (dict(mask=masks.Causal), r"`mask` must be an instance, `Causal\(...\)`"),
    "a word for a similarity": (dict(similarity="dot"), "`similarity` must be a Similarity.*'dot'"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        jattn.nnx.MultiHeadAttention(16, 4, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        jattn.linen.MultiHeadAttention(16, 4, **options)


def test_random_keys():
    layer = jattn.nnx.MultiHeadAttention(16, 4, dropout_rate=0.5, implementation="reference", rngs=nnx.Rngs(0))
    data = CausalAttention(16, 4, max_len=8)
    for rngs in (0, None, jax.random.key(0), nnx.Rngs(0).params):
        for make in (
            lambda rngs: jattn.nnx.MultiHeadAttention(16, 4, rngs=rngs),
            lambda rngs: jattn.nnx.Layer(data, rngs=rngs),
        ):
            with pytest.raises(
                ValueError, match=r"`rngs` must be streams of random keys, such as `nnx.Rngs\(0\)`; got"
            ):
                make(rngs)
    x = jnp.ones((2, 16))
    for rngs, message in ((0, "`rngs` must be .*got 0"), (nnx.Rngs(params=0), r"a stream for dropout.*\['params'\]")):
        with pytest.raises(ValueError, match=message):
            layer(x, rngs=rngs)
    assert layer(x, rngs=jax.random.key(0)).shape == (2, 16)
    with pytest.raises(ValueError, match=r"CausalAttention has no `stepp`: .* one of .*step.*; got 'stepp'"):
        jattn.nnx.Layer(data, rngs=nnx.Rngs(0)).run("stepp", x)
    for kind in (lambda layer: jattn.nnx.Layer(layer, rngs=nnx.Rngs(0)), jattn.linen.Layer):
        with pytest.raises(ValueError, match=r"`layer` must be a layer of `jattn`.*the class `CausalAttention`"):
            kind(CausalAttention)
