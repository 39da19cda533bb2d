# %% [markdown]
# # Coming from FlexAttention, flash-attn, xformers or jax.nn
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jattn/jattn/blob/main/examples/notebooks/port.ipynb)
#
# For each call of those libraries, this notebook writes the same in jattn, runs it, and compares it with a dense
# definition in float64. PyTorch is not needed.

# %%
# Setup. On Colab this installs jattn. Elsewhere, run `pip install -e '.[examples,models]'` in a clone first.
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/jattn/jattn"
EXAMPLES = Path.cwd().parent  # the folder `examples`, whose modules some notebooks import
if "google.colab" in sys.modules:
    clone = Path("/content/jattn")
    EXAMPLES = clone / "examples"
    on_tpu = any(name.startswith(("COLAB_TPU", "TPU_")) for name in os.environ)
    extra = "[tpu]" if on_tpu else "[cuda12]" if Path("/dev/nvidia0").exists() else ""
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, str(clone)], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*install, f"{clone}[examples,models]", f"jax{extra}>=0.10"], check=True)
for package in ("jax", "jattn"):
    if importlib.util.find_spec(package) is None:
        raise RuntimeError(
            f"{package} is not installed: run `pip install -e '.[examples,models]'` in a clone of jattn."
        )
jax_version = getattr(sys.modules.get("jax"), "__version__", None) or importlib.metadata.version("jax")
if tuple(map(int, jax_version.split(".")[:2])) < (0, 10):
    raise RuntimeError(
        f"jattn needs JAX 0.10 or newer, and this kernel has JAX {jax_version}. Run `pip install -U jax` (on a TPU "
        "`jax[tpu]`, on a GPU `jax[cuda12]`), restart the kernel, and begin again with this cell."
    )
sys.path.insert(0, str(EXAMPLES))
SMALL = os.environ.get("JATTN_NOTEBOOK") == "small"  # tests run the notebooks at a small size

# %% [markdown]
# ## The table
#
# | there | here |
# |---|---|
# | FlexAttention `mask_mod(b, h, q_idx, kv_idx)` | `mask=lambda b, h, q, k: ...`, or `lambda q, k: ...` |
# | FlexAttention `score_mod(score, b, h, q_idx, kv_idx)` | `scores=lambda s, b, h, q, k: ...` |
# | FlexAttention `create_block_mask(...)` | nothing: the plan is made from the function |
# | FlexAttention `enable_gqa=True` | nothing: fewer key heads are grouped |
# | FlexAttention `return_lse=True` | `jattn.partial_attention(...)` returns `out` and `lse` |
# | flash-attn `causal=True` | `mask=masks.Causal()`, and `query_positions=` if there are fewer queries than keys |
# | flash-attn `window_size=(left, right)` | `masks.SlidingWindow(left, right)`, with None for -1 |
# | flash-attn `softcap=c`, `alibi_slopes=s` | `scores=scores.SoftCap(c)`, `scores=scores.ALiBi(s)` |
# | flash-attn `softmax_scale=s` | `similarity=similarities.Dot(s)` |
# | flash-attn `dropout_p=p` | `dropout=jattn.Dropout(p, jax.random.key(0))` |
# | flash-attn `flash_attn_varlen_func(..., cu_seqlens)` | `mask=masks.from_cu_seqlens(cu_seqlens)` |
# | flash-attn `flash_attn_with_kvcache` | a layer's `initial_state`, `prefill`, `step` |
# | xformers `LowerTriangularMask()` | `masks.Causal()` |
# | xformers `BlockDiagonalMask.from_seqlens(lengths)` | `masks.from_cu_seqlens(numpy.cumsum([0, *lengths]))` |
# | xformers a tensor as `attn_bias` | `scores=scores.Bias(array)` |
# | `jax.nn.dot_product_attention` | `jattn.dot_product_attention`, same signature |
# | PyTorch's `scaled_dot_product_attention(attn_mask=booleans)` | `mask=masks.Dense(array)` |
#
# **Axes.** FlexAttention and PyTorch have heads before the length, `[batch, heads, length, features]`. jattn,
# flash-attn, xformers and jax.nn have them after it, `[batch, length, heads, features]`: `x.swapaxes(1, 2)` goes from
# one to the other.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import jattn
from jattn import masks, scores, similarities

BATCH, LENGTH, HEADS, FEATURES = 2, 96 if SMALL else 1024, 4, 16
query, key, value = (
    jax.random.normal(jax.random.key(i), (BATCH, LENGTH, heads, FEATURES)) for i, heads in enumerate((HEADS, 2, 2))
)  # four query heads share two key heads


def dense(allowed: np.ndarray | bool = True, modify=lambda s: s, scale=FEATURES**-0.5, query=query):
    """The definition, in float64, with all scores at once."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    k, v = (np.repeat(x, HEADS // 2, axis=2) for x in (k, v))
    s = modify(np.einsum("bqhd,bkhd->bhqk", q, k) * scale)
    s = np.where(allowed, s, -np.inf)
    weights = np.exp(s - s.max(-1, keepdims=True, initial=-1e30))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def check(name, out, expected):
    error = float(np.abs(np.asarray(out) - expected).max())
    assert error < 1e-5, (name, error)
    print(f"{name:<45} largest error {error:.1e}")


call = jax.jit(lambda q, k, v, pieces: jattn.attention(q, k, v, **pieces))  # pieces are arguments like any other
i, j = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]  # query and key positions
b, h = np.arange(BATCH)[:, None, None, None], np.arange(HEADS)[:, None, None]

# %% [markdown]
# ## FlexAttention
#
# A `mask_mod` stays as it is, with `jnp` for `torch`. There is no block mask to create and keep in step with it.
#
# ```python
# def mask_mod(b, h, q_idx, kv_idx):
#     return (q_idx >= kv_idx) & (q_idx - kv_idx < 64)
#
# block_mask = create_block_mask(mask_mod, B, H, S, S)
# flex_attention(query, key, value, block_mask=block_mask, enable_gqa=True)
# ```


# %%
def mask_mod(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (q_idx - kv_idx < 64)


out = jattn.attention(query, key, value, mask=mask_mod)
check("mask_mod", out, dense((j <= i) & (i - j < 64)))
print(jattn.explain(query, key, value, mask=mask_mod))

# %% [markdown]
# Arrays that a function closes over are looked up by the indices that it is given. They are differentiated too.
#
# ```python
# def document_mask(b, h, q_idx, kv_idx):
#     return (document[b, q_idx] == document[b, kv_idx]) & (q_idx >= kv_idx)
#
# def alibi(score, b, h, q_idx, kv_idx):
#     return score + slopes[h] * (kv_idx - q_idx)
# ```

# %%
document = np.sort(np.random.default_rng(0).integers(0, 5, (BATCH, LENGTH)), axis=-1)
slopes = jnp.array([0.5, 0.25, 0.125, 0.0625])


def document_mask(b, h, q_idx, kv_idx):
    return (document[b, q_idx] == document[b, kv_idx]) & (q_idx >= kv_idx)


def alibi(score, b, h, q_idx, kv_idx):
    return score + slopes[h] * (kv_idx - q_idx)


allowed = (document[:, None, :, None] == document[:, None, None, :]) & (j <= i)
expected = dense(allowed, lambda s: s + np.asarray(slopes)[h] * (j - i))
check("mask_mod, score_mod", jattn.attention(query, key, value, mask=document_mask, scores=alibi), expected)
named = {"mask": masks.SameSegment(document) & masks.Causal(), "scores": scores.ALiBi(slopes)}
check("the same, with names", call(query, key, value, named), expected)

# %% [markdown]
# The names have an advantage under `jit`: a piece is an argument like an array, so new documents or slopes do not
# compile again.
#
# `return_lse=True` is `partial_attention`. Its results over different keys are put together by `merge`.

# %%
half = LENGTH // 2
parts = [jattn.partial_attention(query, key[:, part], value[:, part]) for part in (slice(half), slice(half, None))]
check("two halves of the keys, merged", jattn.merge(*parts).out, dense())
print(parts[0].lse.shape)

# %% [markdown]
# ## flash-attn
#
# ```python
# flash_attn_func(query, key, value, causal=True, window_size=(63, 0), softcap=20.0, softmax_scale=0.3)
# ```

# %%
pieces = {
    "mask": masks.SlidingWindow(63, 0),
    "scores": scores.SoftCap(20.0),
    "similarity": similarities.Dot(0.3),
}
expected = dense((j <= i) & (i - j < 64), lambda s: 20 * np.tanh(s / 20), scale=0.3)
check("window, soft cap, scale", call(query, key, value, pieces), expected)

# %% [markdown]
# Packed sequences, `flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, ...)`: the row keeps its axis of
# length, and the boundaries are an array. With `causal=True` the positions in the row serve, because all sequences are
# in order.

# %%
cu_seqlens = np.array([0, 20, 21, 70, LENGTH])
ids = np.repeat(np.arange(4), np.diff(cu_seqlens))
packed = {"mask": masks.from_cu_seqlens(cu_seqlens) & masks.Causal()}
check("varlen, causal", call(query, key, value, packed), dense((ids[:, None] == ids[None]) & (j <= i)))

# %% [markdown]
# If there are fewer queries than keys, flash-attn takes the last query to be at the last key. jattn asks for the
# positions of the queries, because other libraries take the first to be at the first.

# %%
few = 8
recent = {"mask": masks.Causal(), "query_positions": np.arange(LENGTH - few, LENGTH)}
check("the last queries", call(query[:, -few:], key, value, recent), dense(j <= i)[:, -few:])

# %% [markdown]
# `flash_attn_with_kvcache` updates a cache and attends to it. Here layers do that: see
# [caches](https://github.com/jattn/jattn/blob/main/jattn/layers/README.md). With a cache of your own, give the number
# of tokens that it holds.

# %%
filled = jnp.array([LENGTH // 3, LENGTH])  # tokens in the cache of each example, this one included
at = filled[:, None] - 1  # the position of the query, [batch, 1]
last = query[:, -1:]
step = jax.jit(lambda q, k, v, at: jattn.attention(q, k, v, mask=masks.Causal(), query_positions=at))
expected = dense(j[None, None] <= np.asarray(at)[:, None, :, None], query=last)
check("one step with a cache", step(last, key, value, at), expected)

# %% [markdown]
# ## xformers
#
# ```python
# memory_efficient_attention(query, key, value, attn_bias=LowerTriangularMask())
# memory_efficient_attention(query, key, value, attn_bias=BlockDiagonalMask.from_seqlens([20, 30, LENGTH - 50]))
# memory_efficient_attention(query, key, value, attn_bias=bias)
# ```

# %%
check("LowerTriangularMask()", call(query, key, value, {"mask": masks.Causal()}), dense(j <= i))

lengths = [20, 30, LENGTH - 50]
ids = np.repeat(np.arange(3), lengths)
diagonal = {"mask": masks.from_cu_seqlens(np.cumsum([0, *lengths]))}
check("BlockDiagonalMask.from_seqlens", call(query, key, value, diagonal), dense(ids[:, None] == ids[None]))

bias = jax.random.normal(jax.random.key(3), (1, HEADS, LENGTH, LENGTH))
with_bias = {"scores": scores.Bias(bias)}
check("a tensor as attn_bias", call(query, key, value, with_bias), dense(modify=lambda s: s + np.asarray(bias)))

# %% [markdown]
# A bias with a gradient is a bias that is learned, and its gradient is computed whatever its shape.
#
# ## jax.nn
#
# Change the import, and nothing else.

# %%
options = {"is_causal": True, "local_window_size": (63, 0)}
theirs = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options))(query, key, value)
ours = jax.jit(lambda q, k, v: jattn.dot_product_attention(q, k, v, **options))(query, key, value)
check("jattn.dot_product_attention", ours, dense((j <= i) & (i - j < 64)))
check("jax.nn.dot_product_attention", theirs, dense((j <= i) & (i - j < 64)))

# %% [markdown]
# They differ where a query may attend to nothing. There it gets the mean of all values, padding included; here it gets
# zeros, and so do the gradients.

# %%
nothing = {"mask": jnp.zeros((1, 1, LENGTH, LENGTH), bool)}
for name, function in {"jax.nn": jax.nn.dot_product_attention, "jattn": jattn.dot_product_attention}.items():
    out = jax.jit(lambda q, k, v, function=function: function(q, k, v, **nothing))(query, key, value)
    print(f"{name:<8} largest output of a query that sees nothing: {float(abs(out).max()):.3f}")

# %% [markdown]
# ## Flax
#
# Flax's own multi-head attention takes jattn by its argument `attention_fn`, with the parameters and checkpoints that
# it has.

# %%
from flax import nnx

import jattn.nnx

layer = nnx.MultiHeadAttention(
    4, 32, decode=False, attention_fn=jattn.nnx.attention_fn(mask=masks.SlidingWindow(9, 0)), rngs=nnx.Rngs(0)
)
x = jax.random.normal(jax.random.key(4), (2, 40, 32))
out = nnx.jit(lambda layer, x: layer(x))(layer, x)

plain = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))  # the same parameters
window = masks.create(masks.SlidingWindow(9, 0), 40, 40)[None]
expected = nnx.jit(lambda layer, x: layer(x, mask=window))(plain, x)
assert jnp.allclose(out, expected, atol=1e-5)
print("Flax with jattn inside:", out.shape)
