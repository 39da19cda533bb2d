# %% [markdown]
# # Many devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jattn/jattn/blob/main/examples/notebooks/many_devices.ipynb)
#
# Split the batch, the heads or both over devices. With jattn there is one rule: split the arrays, and nothing else
# changes. Without eight devices, this notebook makes eight out of the CPU, which is enough to see what goes where.

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
# Before JAX starts: eight emulated devices, which are used if there are no real ones to share the work.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax import NamedSharding, P

import jattn
import jattn.nnx
from jattn import masks

devices = jax.devices() if jax.device_count() > 1 else jax.devices("cpu")
devices = devices[: 2 ** int(np.log2(len(devices)))]
COUNT = len(devices)
print(f"{COUNT} x {devices[0].device_kind}")

# %% [markdown]
# ## Data parallel
#
# The batch is split over all devices. The call is as before, and its result is split like its inputs.

# %%
LENGTH, HEADS, FEATURES = 64 if SMALL else 512, 8, 32
arrays = [np.random.default_rng(i).standard_normal((COUNT, LENGTH, HEADS, FEATURES), np.float32) for i in range(3)]
attend = jax.jit(lambda q, k, v, mask: jattn.attention(q, k, v, mask=mask))

data = jax.make_mesh((COUNT,), ("data",), devices=devices)
by_example = [jax.device_put(x, NamedSharding(data, P("data"))) for x in arrays]
out = attend(*by_example, masks.Causal())
print(out.sharding.spec, "each device has", out.addressable_shards[0].data.shape, "of", out.shape)


# %%
def draw(x, axes, title):
    """Which device has which examples and heads of an array `[batch, length, heads, features]`."""
    owner = np.zeros((x.shape[0], x.shape[2]))
    for shard in x.addressable_shards:
        owner[shard.index[0], shard.index[2]] = devices.index(shard.device)
    axes.imshow(owner, cmap="tab10", vmin=0, vmax=9, aspect="auto")
    for row, column in np.ndindex(owner.shape):
        axes.text(column, row, f"{owner[row, column]:.0f}", ha="center", va="center", color="white", fontsize=8)
    axes.set(title=title, xlabel="head", ylabel="example")


model = jax.make_mesh((COUNT,), ("model",), devices=devices)
by_head = [jax.device_put(x, NamedSharding(model, P(None, None, "model"))) for x in arrays]

rows = max(COUNT // 4, 1)
both = jax.make_mesh((rows, COUNT // rows), ("data", "model"), devices=devices)
by_both = [jax.device_put(x, NamedSharding(both, P("data", None, "model"))) for x in arrays]

figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
splits = {"P('data')": by_example, "P(None, None, 'model')": by_head, "P('data', None, 'model')": by_both}
for (spec, split), axes in zip(splits.items(), panels, strict=True):
    draw(split[0], axes, spec)
figure.suptitle("Which device has which part")
plt.show()

# %% [markdown]
# ## Heads, or both
#
# Heads attend independently of each other, so splitting them needs no communication either. All three give the values
# of one device. The number of collectives is read from the compiled program.

# %%
whole = attend(*arrays, masks.Causal())


def collectives(compiled):
    """What devices send each other: the names of the operations, counted."""
    found = re.findall(r" (all-[a-z]+|reduce-scatter|collective-permute)(?:-start)?\(", compiled.as_text())
    return {name: found.count(name) for name in sorted(set(found))}


for spec, split in splits.items():
    out = attend(*split, masks.Causal())
    error = np.abs(np.asarray(out) - np.asarray(whole)).max()
    sent = collectives(attend.lower(*split, masks.Causal()).compile())
    print(f"{spec:<26} largest difference {error:.1e}   collectives {sent}")
    assert error < 1e-5 and not sent and out.sharding.is_equivalent_to(split[0].sharding, out.ndim)

# %% [markdown]
# ## Pieces are split too
#
# Arrays in masks and scores have an axis of examples or heads as well. Here each row packs several documents, whose
# ids are split like the batch, and each head has its own slope. Gradients arrive split like their arrays: those of the
# slopes, which all examples share, are summed over the devices.

# %%
documents = np.sort(np.random.default_rng(3).integers(0, 4, (COUNT, LENGTH)), axis=-1)
ids = jax.device_put(documents, NamedSharding(both, P("data")))
slopes = jax.device_put(jattn.scores.ALiBi.standard(HEADS).slopes, NamedSharding(both, P("model")))


def loss(slopes, query, key, value, ids):
    mask = masks.Causal() & masks.SameSegment(ids)
    return jnp.square(jattn.attention(query, key, value, mask=mask, scores=jattn.scores.ALiBi(slopes))).mean()


gradient = jax.jit(jax.grad(loss))
split = gradient(slopes, *by_both, ids)
alone = gradient(np.asarray(slopes), *arrays, documents)
print("split like the slopes:", split.sharding.spec)
assert split.sharding.spec == P("model") and np.allclose(split, alone, atol=1e-6)

# %% [markdown]
# ## A layer, and a step of training
#
# The parameters are on every device and the batch is split. `jax.grad` gives the gradient of the loss of the whole
# batch, because JAX sums what the devices found.

# %%
layer = jattn.nnx.MultiHeadAttention(64, HEADS, rotary=True, mask=masks.Causal(), rngs=nnx.Rngs(0))
definition, parameters = nnx.split(layer)
x = np.random.default_rng(4).standard_normal((COUNT, LENGTH, 64), np.float32)


@jax.jit
def step(parameters, x):
    """One step of gradient descent on a loss that only serves as an example."""

    def loss(parameters):
        return jnp.square(nnx.merge(definition, parameters)(x) - x).mean()

    value, gradients = jax.value_and_grad(loss)(parameters)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradients)


on_one = step(parameters, x)
replicated = jax.device_put(parameters, NamedSharding(data, P()))
split = jax.device_put(x, NamedSharding(data, P("data")))
on_all = step(replicated, split)
print(f"loss {on_one[0]:.6f} on one device, {on_all[0]:.6f} on {COUNT}")
for one, many in zip(jax.tree.leaves(on_one[1]), jax.tree.leaves(on_all[1]), strict=True):
    assert np.allclose(one, many, atol=1e-5)
sent = collectives(step.lower(replicated, split).compile())
print("collectives:", sent)
assert "all-reduce" in sent or COUNT == 1

# %% [markdown]
# ## Whole models
#
# `models.shard` does this for the models of `jattn.models`: it splits the batch, the heads and features, or the
# parameters themselves, which are then gathered layer by layer (FSDP).

# %%
from jattn import models
from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM

config = GPT2Config(vocabulary=64, features=64, depth=2, heads=HEADS, max_length=32)
tokens = np.random.default_rng(5).integers(0, 64, (COUNT, 16))
logits = nnx.jit(lambda model, tokens: model(tokens))
expected = np.asarray(logits(GPT2ForCausalLM(config, rngs=nnx.Rngs(0)), tokens))

auto = jax.make_mesh((rows, COUNT // rows), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2, devices=devices)
make = lambda: GPT2ForCausalLM(config, rngs=nnx.Rngs(0))  # the parameters are made where they belong
gpt = models.shard(make, auto, batch="data", heads="model", parameters="data")
out = logits(gpt, jax.device_put(tokens, NamedSharding(auto, P("data"))))
kernel = gpt.blocks[0].mlp.up.kernel.get_value()
print(f"a kernel of shape {kernel.shape}, of which each device keeps {kernel.addressable_shards[0].data.shape}")
assert np.allclose(np.asarray(out), expected, atol=1e-5)

# %% [markdown]
# ## A split length
#
# If the length is split, keys and values have to meet. jattn gathers them, and `explain` says so. To send them around
# in a ring instead, see [long
# sequences](https://github.com/jattn/jattn/blob/main/examples/notebooks/long_sequences.ipynb).

# %%
length = jax.make_mesh((COUNT,), ("length",), devices=devices)
by_length = [jax.device_put(x, NamedSharding(length, P(None, "length"))) for x in arrays]
print(jattn.explain(*by_length, mask=masks.Causal()).gathered)

# %% [markdown]
# ## The same program on a pod
#
# [`examples/train_lm.py`](https://github.com/jattn/jattn/blob/main/examples/train_lm.py) trains a language model on a
# laptop, on eight devices or on a TPU pod slice: see [the
# commands](https://github.com/jattn/jattn/blob/main/jattn/ops/README.md#several-devices).
