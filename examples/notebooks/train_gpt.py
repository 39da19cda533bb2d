# %% [markdown]
# # Train a small GPT
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jattn/jattn/blob/main/examples/notebooks/train_gpt.ipynb)
#
# A language model of bytes, trained on the help texts that come with every Python. On a TPU or GPU (on Colab:
# *Runtime*, *Change runtime type*) it has 11 million parameters and takes minutes; on a CPU a smaller one takes a few.
# Then it writes, and we look at what its heads do.

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
import dataclasses
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jattn
import jattn.nnx

ON_CPU = jax.default_backend() == "cpu"
print(f"JAX {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The text
#
# The module `lm` is in the folder [examples/lm](https://github.com/jattn/jattn/tree/main/examples/lm). A tenth of each
# topic is held out.

# %%
from lm import text
from lm.model import SIZES

training, held_out = text.load()
print(f"{len(training.data):,} bytes, and {len(held_out.data):,} held out")
print(training.data[:300].tobytes().decode())

size = SIZES["tiny" if SMALL else "small" if ON_CPU else "medium"]
if SMALL:
    size = dataclasses.replace(size, layers=1, steps=30)
print(size)

# %% [markdown]
# ## The model
#
# Blocks as in GPT, with rotary positions. Attention is one layer; its mask is given at the call.


# %%
class Block(nnx.Module):
    def __init__(self, features, heads, dtype, rngs):
        self.attention_norm = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.attention = jattn.nnx.MultiHeadAttention(
            features, heads, rotary=True, qk_norm=True, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.widen = nnx.Linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.narrow = nnx.Linear(4 * features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.narrow(nnx.gelu(self.widen(self.mlp_norm(x))))


class GPT(nnx.Module):
    def __init__(self, size, dtype, rngs):
        self.dtype = dtype
        self.embed = nnx.Embed(256, size.features, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.blocks = nnx.List([Block(size.features, size.heads, dtype, rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.features, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(size.features, 256, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens, mask):
        x = self.embed(tokens).astype(self.dtype)  # the gradients of its rows are summed in float32
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x)).astype(jnp.float32)


model = GPT(size, jnp.float32 if ON_CPU else jnp.bfloat16, nnx.Rngs(0))
count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
print(f"{count:,} parameters")

# %% [markdown]
# ## The mask
#
# Rows are cut out of a stream of topics, so a row may contain several. With this mask a byte sees earlier bytes of its
# own topic only. The ids of the topics are an array like any other: each batch has its own, and nothing is compiled
# again.


# %%
def mask_of(topic):
    return jattn.masks.Causal() & jattn.masks.SameSegment(topic)


def bits_per_byte(model, tokens, topic):
    logits = model(tokens[:, :-1], mask_of(topic[:, :-1]))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    counted = topic[:, 1:] == topic[:, :-1]  # the first byte of a topic is not predicted
    return jnp.sum(nats, where=counted) / counted.sum() / np.log(2)


# %% [markdown]
# ## Training

# %%
schedule = optax.warmup_cosine_decay_schedule(
    0, size.learning_rate, size.steps // 10, size.steps, size.learning_rate / 20
)
transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1))
optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, tokens, topic):
    bits, gradients = nnx.value_and_grad(bits_per_byte)(model, tokens, topic)
    optimizer.update(model, gradients)
    return bits


step_of = nnx.cached_partial(train_step, model, optimizer)  # the modules are taken apart once, not at every step
losses = []
began = time.perf_counter()
for step in range(size.steps):
    starts = training.batch(0, step, size.batch, size.length)
    losses.append(step_of(*training.rows(starts, size.length)))
    if step == 0:
        losses[0].block_until_ready()
        print(f"compiled in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
    if step % 50 == 0:
        print(f"step {step:>4}: {float(losses[-1]):.2f} bits per byte")
losses = np.array([float(loss) for loss in losses])
rate = (size.steps - 1) * size.batch * size.length / (time.perf_counter() - began)
print(f"{rate:,.0f} bytes per second")

# %%
evaluate = nnx.jit(bits_per_byte)
batches = held_out.cover(size.batch, size.length)[: 2 if SMALL else None]
reached = float(np.mean([evaluate(model, *held_out.rows(starts, size.length)) for starts in batches]))
bigrams = text.bigram_entropy(training.data, held_out.data)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(losses, alpha=0.4, label="training")
axes.axhline(reached, color="tab:orange", label=f"held out: {reached:.2f}")
axes.axhline(bigrams, color="gray", linestyle=":", label=f"byte bigrams, held out: {bigrams:.2f}")
axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, 8.5))
axes.legend(frameon=False)
plt.show()
assert losses[-5:].mean() < losses[:5].mean()

# %% [markdown]
# ## It writes
#
# One byte at a time, from a window that slides along. (For caches, which do less work per byte, see
# [layers](https://github.com/jattn/jattn/blob/main/jattn/layers/README.md).)


# %%
@nnx.jit
def write(model, window, key):
    """As many bytes as there are keys; `window` is the beginning, `[1, length]`."""

    def one(window, key):
        logits = model(window, jattn.masks.Causal())[0, -1]
        byte = jax.random.categorical(key, logits / 0.7).astype(jnp.int32)
        return jnp.roll(window, -1, axis=1).at[0, -1].set(byte), byte

    return jax.lax.scan(one, window, key)[1]


prompt = held_out.data[None, : size.length // 2].astype(np.int32)
made = write(model, prompt, jax.random.split(jax.random.key(0), 20 if SMALL else 400))
given, written = (np.asarray(x).astype(np.uint8).tobytes().decode(errors="replace") for x in (prompt, made))
print(f"{given}\n--- and so it goes on: ---\n{written}")

# %% [markdown]
# ## What its heads attend to
#
# `jattn.record` returns the weights of every attention inside of it. They are computed for this look alone: training
# paid nothing for them.

# %%
sentence = held_out.excerpt(40)
tokens = np.frombuffer(sentence, np.uint8)[None].astype(np.int32)
with jattn.record(layers="blocks.*") as seen:
    model(tokens, jattn.masks.Causal())
print(seen)

# %%
last = list(seen.values())[-1][0]
letters = [{" ": "␣", "\n": "↵"}.get(chr(byte), chr(byte)) for byte in sentence]
figure, panels = plt.subplots(1, len(last), figsize=(4 * len(last), 4.3), layout="constrained")
for head, axes in enumerate(panels):
    axes.imshow(np.sqrt(np.asarray(last[head], np.float32)), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(letters)), letters, fontsize=6, family="monospace")
    axes.set_yticks(range(len(letters)), letters, fontsize=6, family="monospace")
    axes.tick_params(length=0)
    axes.set_title(f"last layer, head {head}")
plt.show()

# %% [markdown]
# ## The work that the mask saves
#
# For the whole stream in one row, most tiles have no pair of bytes of one topic. They are skipped.

# %%
stream = training.topic[: 2048 if SMALL else 65536]
x = jax.ShapeDtypeStruct((len(stream), size.heads, 32), jnp.float32)
visited, _, every = jattn.explain(x, x, x, mask=mask_of(stream)).plan.counts()
print(f"visited {visited:,} of {every:,} tiles")

# %% [markdown]
# [`examples/train_lm.py`](https://github.com/jattn/jattn/blob/main/examples/train_lm.py) is the whole program: several
# devices and hosts, checkpoints, resuming.
