# %% [markdown]
# # First attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jattn/jattn/blob/main/examples/notebooks/first_attention.ipynb)
#
# One function, `jattn.attention`, and the pieces that it takes: masks, scores, normalizers. In ten minutes you will
# have written a mask that no library has a name for, seen what work it saves, and looked at the weights.

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

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jattn
from jattn import masks, normalizers, scores, similarities

print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown]
# ## One call
#
# Queries, keys and values are arrays `[batch, length, heads, features]`. The output has the shape of the queries, with
# the features of the values.

# %%
LENGTH = 256 if SMALL else 4096
query, key, value = (jax.random.normal(jax.random.key(i), (1, LENGTH, 8, 64)) for i in range(3))

out = jax.jit(jattn.attention)(query, key, value)
print(out.shape)

# %% [markdown]
# ## Masks
#
# A mask says which query may attend to which key. It is a formula of two positions. Common ones have names, and they
# combine by `&`, `|` and `~`.

# %%
shown = {
    "Causal()": masks.Causal(),
    "SlidingWindow(6, 0)": masks.SlidingWindow(6, 0),
    "SlidingWindow(6, 0)\n| Sinks(3) & Causal()": masks.SlidingWindow(6, 0) | masks.Sinks(3) & masks.Causal(),
    "Prefix(10)": masks.Prefix(10),
    "Chunked(8) & Causal()": masks.Chunked(8) & masks.Causal(),
    "Dilated(5, 3)": masks.Dilated(5, 3),
    "Neighborhood((6, 6), (3, 3))": masks.Neighborhood((6, 6), (3, 3)),
    "SameSegment(ids) & Causal()": masks.SameSegment(np.repeat([1, 2, 3], [9, 15, 12])) & masks.Causal(),
}


def draw(mask, axes, length=36):
    """Blue where the query of a row may attend to the key of a column."""
    axes.imshow(masks.create(mask, length, length).reshape(length, length), cmap="Blues", vmin=0, vmax=1.3)
    axes.set(xticks=[], yticks=[])


figure, panels = plt.subplots(2, 4, figsize=(12, 6.6), layout="constrained")
for (name, mask), axes in zip(shown.items(), panels.flat, strict=True):
    draw(mask, axes)
    axes.set_title(name, fontsize=10)
figure.supxlabel("key")
figure.supylabel("query")
plt.show()

# %% [markdown]
# ## A mask of your own
#
# Any function of two positions is a mask. Here the sequence is an image of 16 x 16 patches and then text. Patches see
# the patches near them. Text sees the whole image, and its own last 64 tokens.


# %%
def image_then_text(q, k):
    near = (abs(q // 16 - k // 16) <= 2) & (abs(q % 16 - k % 16) <= 2)
    return jnp.where(q < 256, (k < 256) & near, (k < 256) | ((k <= q) & (q - k < 64)))


out = jax.jit(lambda *arrays: jattn.attention(*arrays, mask=image_then_text))(query, key, value)

figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
draw(masks.of(image_then_text), axes, 512)
axes.set(title="256 patches, then 256 tokens of text", xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# ## What it saves
#
# No array of booleans was made. jattn read the function, found out for whole tiles of queries and keys whether all,
# some or none of their pairs are allowed, and skipped the last kind. `explain` shows what a call would do, without
# doing it: `█` stands for a tile that is computed without a mask, `▒` for one with, `·` for one that is skipped.

# %%
print(jattn.explain(query, key, value, mask=image_then_text))

# %% [markdown]
# It also answers for devices that you do not have, and for arrays that do not fit into memory.

# %%
million = jax.ShapeDtypeStruct((1, 2**20, 8, 128), "bfloat16")
explanation = jattn.explain(million, million, million, mask=masks.SlidingWindow(4095, 0), target="tpu v5e")
print("runs:", explanation.implementation)
print("memory:", explanation.memory)

# %% [markdown]
# ## The other pieces
#
# | piece | argument | question |
# |---|---|---|
# | similarity | `similarity=` | how alike are a query and a key? |
# | scores | `scores=` | what happens to that number? |
# | mask | `mask=` | which pairs are allowed? |
# | normalizer | `normalizer=` | how does a row of scores become weights? |
#
# `attention_weights` returns the weights, for a look.

# %%
q, k = (jax.random.normal(jax.random.key(i), (24, 1, 16)) for i in (4, 5))
pieces = {
    "softmax": {},
    "ALiBi: nearer is better": {"scores": scores.ALiBi(np.array([0.5], np.float32))},
    "Gaussian similarity": {"similarity": similarities.Gaussian(0.2)},
    "sparsemax: exact zeros": {"normalizer": normalizers.Sparsemax()},
    "my own: every 8 tokens": {"scores": lambda s, b, h, q, k: s + 2 * jnp.cos(2 * jnp.pi * (q - k) / 8)},
}
figure, panels = plt.subplots(1, 5, figsize=(15, 3.6), layout="constrained")
for (name, options), axes in zip(pieces.items(), panels, strict=True):
    weights = jattn.attention_weights(q, k, mask=masks.Causal(), **options)[0]
    axes.imshow(np.sqrt(weights), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=name, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Every array has a gradient
#
# The slopes of ALiBi, a table of biases, an array that your function closes over: all of them can be learned.

# %%
x = query[:, :128]


@jax.jit
@jax.grad
def gradient(slopes):
    return jattn.attention(x, x, x, mask=masks.Causal(), scores=scores.ALiBi(slopes)).var()


print(gradient(scores.ALiBi.standard(8).slopes))

# %% [markdown]
# ## What it refuses
#
# A query that may attend to nothing gets zeros, never NaN. Where a call could mean two things, there is an error that
# says which. Say we decode: one query, and the keys so far. Is it the first query, or the last?

# %%
last = query[:, -1:]
try:
    jattn.attention(last, key, value, mask=masks.Causal())
except ValueError as error:
    print(error)

# %%
out = jattn.attention(last, key, value, mask=masks.Causal(), query_positions=np.array([LENGTH - 1]))
whole = jax.jit(lambda *arrays: jattn.attention(*arrays, mask=masks.Causal()))(query, key, value)
assert jnp.allclose(out, whole[:, -1:], atol=1e-5)

# %% [markdown]
# ## Where to go from here
#
# - [All masks](https://github.com/jattn/jattn/blob/main/jattn/masks/README.md).
# - [Layers](https://github.com/jattn/jattn/blob/main/jattn/layers/README.md) for Flax NNX and Linen, which also
#   generate.
# - [How a call runs](https://github.com/jattn/jattn/blob/main/jattn/ops/README.md).
