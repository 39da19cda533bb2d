# %% [markdown]
# # Long sequences
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jattn/jattn/blob/main/examples/notebooks/long_sequences.ipynb)
#
# What to do when a sequence is too long for every token to look at every other: sparse patterns (Longformer, BigBird),
# a state instead of keys (linear time), and a length that is split over devices (ring attention).

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
# Several devices, for the ring at the end. Where there is only a CPU, JAX makes eight of it, if asked before it starts.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jattn
from jattn import masks
from jattn.variants.sparse import bigbird_mask, longformer_mask, random_blocks, strided_mask

ON_CPU = jax.default_backend() == "cpu"
LENGTHS = [256, 512] if SMALL else [2048, 4096, 8192, 16384] if ON_CPU else [4096, 8192, 16384, 32768, 65536]
HEADS, FEATURES = 4, 64
print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Patterns
#
# Longformer has a window and a few global tokens, which see all and are seen by all. BigBird adds random blocks. The
# Sparse Transformer looks at every n-th token. Each is a mask.

# %%
shown = {
    "window": longformer_mask(6),
    "Longformer: window + global": longformer_mask(6, global_tokens=[0, 40], length=80),
    "dilated window": longformer_mask(6, dilation=3),
    "BigBird": bigbird_mask(80, 5, random_blocks(80, 5, heads=1, count=2, seed=0)),
    "Sparse Transformer": strided_mask(9),
}
figure, panels = plt.subplots(1, 5, figsize=(15, 3.5), layout="constrained")
for (name, mask), axes in zip(shown.items(), panels, strict=True):
    axes.imshow(masks.create(mask, 80, 80).reshape(80, 80), cmap="Blues", vmin=0, vmax=1.3)
    axes.set(title=name, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## What they save
#
# The same call with another mask visits fewer tiles. Memory is linear in the length for all of them: no array of
# scores is ever made, also not for the gradients.


# %%
def calls(length):
    """The arguments of each call at this length: a window of 256 on either side, blocks of 64."""
    window, block = min(256, length // 8), 16 if SMALL else 64
    chosen = random_blocks(length, block, heads=1, count=3, seed=0)
    small_tiles = jattn.implementations.Tiled(q_tile=block, k_tile=block)
    return {
        "causal": {"mask": masks.Causal()},
        "Longformer": {"mask": longformer_mask(window, global_tokens=[0], length=length)},
        "BigBird": {"mask": bigbird_mask(length, block, chosen), "implementation": small_tiles},
    }


print("share of tiles that are visited:")
for length in LENGTHS:
    x = jax.ShapeDtypeStruct((length, HEADS, FEATURES), jnp.float32)
    share = {}
    for name, options in calls(length).items():
        visited, _, every = jattn.explain(x, x, x, **options).plan.counts()
        share[name] = visited / every
    print(f"{length:>7} tokens: " + ", ".join(f"{name} {part:.0%}" for name, part in share.items()))

# %% [markdown]
# Time on this machine, and the temporary memory of the compiled gradient. The curve `linear` is attention in linear
# time: a state of fixed size replaces the keys. Each head forgets at its own rate, as in RetNet.


# %%
def inputs(length):
    return jax.random.normal(jax.random.key(length), (3, length, HEADS, FEATURES))


def retention(x):
    decay = jnp.log(1 - 2.0 ** -jnp.arange(5, 5 + HEADS))
    return jattn.linear_recurrence(x[0] / FEATURES, x[1], x[2], log_decay=decay)[0]


def seconds(compiled, x):
    """The best of three, after one that compiles."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        compiled(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)


names = [*calls(LENGTHS[0]), "linear"]
took = {name: [] for name in names}
memory = {name: [] for name in names}
for length in LENGTHS:
    x = inputs(length)
    functions = {"linear": retention}
    for name, options in calls(length).items():
        functions[name] = lambda x, options=options: jattn.attention(*x, **options)
    for name, call in functions.items():
        took[name].append(seconds(jax.jit(call), x))
        gradient = jax.jit(jax.grad(lambda x, call=call: call(x).sum()))
        needed = gradient.lower(x).compile().memory_analysis()
        memory[name].append(needed.temp_size_in_bytes / 2**20 if needed else np.nan)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name in names:
    left.loglog(LENGTHS, took[name], "o-", label=name)
    right.loglog(LENGTHS, memory[name], "o-", label=name)
dense = [HEADS * length**2 * 4 / 2**20 for length in LENGTHS]
right.loglog(LENGTHS, dense, "--", color="gray", label="one array of all scores")
left.set(xlabel="tokens", ylabel="seconds", title="Time, forward")
right.set(xlabel="tokens", ylabel="MiB", title="Temporary memory, with gradients")
for axes in (left, right):
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.minorticks_off()
    axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## As layers
#
# Longformer's global tokens have projections of their own. A linear transformer generates from a state of fixed size,
# however long the text is.

# %%
from flax import nnx

import jattn.nnx
from jattn.variants.kernelized import LinearTransformer
from jattn.variants.sparse import Longformer

x = jax.random.normal(jax.random.key(0), (2, LENGTHS[0], 64))

longformer = jattn.nnx.Layer(Longformer(64, heads=4, reach=32), rngs=nnx.Rngs(0))
out = nnx.jit(lambda layer, x: layer(x, global_tokens=[0]))(longformer, x)
print("Longformer:", out.shape)

linear = jattn.nnx.Layer(LinearTransformer(64, 4), rngs=nnx.Rngs(0))
whole = nnx.jit(lambda layer, x: layer(x))(linear, x)
start, state = nnx.jit(lambda layer, x: layer.prefill(x))(linear, x[:, :-1])
last, state = nnx.jit(lambda layer, x, state: layer.step(x, state))(linear, x[:, -1], state)
assert jnp.allclose(last, whole[:, -1], atol=1e-4)
floats = sum(leaf.size for leaf in jax.tree.leaves(state))
print(
    f"linear transformer: a state of {floats:,} numbers after {LENGTHS[0]:,} tokens; keys and values would be "
    f"{2 * x.size:,}"
)

# %% [markdown]
# ## A ring of devices
#
# Attention over some of the keys, together with its lse, can be merged with attention over the others. So every device
# can keep its own queries, and pass keys and values around in a ring (Liu et al. 2023). This is all of it:


# %%
def ring_attention(query, key, value, mask, mesh):
    """Exact attention over arrays whose length, axis 1, is split over the devices of the mesh."""

    def on_one_device(query, key, value):
        device, count, size = jax.lax.axis_index("ring"), mesh.size, query.shape[1]
        here = device * size + jnp.arange(size)

        def turn(carry, step):
            key, value, total = carry
            there = (device - step) % count * size + jnp.arange(size)  # where the keys that are here now came from
            part = jattn.partial_attention(query, key, value, mask=mask, query_positions=here, key_positions=there)
            neighbors = [(i, (i + 1) % count) for i in range(count)]
            key, value = (jax.lax.ppermute(x, "ring", neighbors) for x in (key, value))
            return (key, value, jattn.merge(total, part)), None

        nothing = jattn.Partial(jnp.zeros_like(value, shape=query.shape), jnp.full_like(query[..., 0], -jnp.inf))
        (_, _, total), _ = jax.lax.scan(turn, (key, value, nothing), jnp.arange(count))
        return total.out

    split = jax.P(None, "ring")
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=split, out_specs=split)(query, key, value)


devices = jax.devices() if jax.device_count() > 1 else jax.devices("cpu")
mesh = jax.make_mesh((len(devices),), ("ring",), devices=devices)
mask = masks.SlidingWindow(LENGTHS[0] // 4, 0)
query, key, value = (
    jax.device_put(
        jax.random.normal(jax.random.key(i), (1, LENGTHS[0], HEADS, FEATURES)),
        jax.NamedSharding(mesh, jax.P(None, "ring")),
    )
    for i in range(3)
)
out = jax.jit(lambda q, k, v: ring_attention(q, k, v, mask, mesh))(query, key, value)
print(f"{len(devices)} devices, each with {out.addressable_shards[0].data.shape[1]} of {out.shape[1]} tokens")

# %% [markdown]
# The result is that of one device. The mask is the same function of positions, so tiles without allowed pairs are
# skipped on each device too.

# %%
arrays = (np.asarray(x) for x in (query, key, value))
whole = jax.jit(lambda q, k, v: jattn.attention(q, k, v, mask=mask))(*arrays)
error = np.abs(np.asarray(out) - np.asarray(whole)).max()
print(f"largest difference: {error:.1e}")
assert error < 1e-5

# %% [markdown]
# More: [all variants](https://github.com/jattn/jattn/blob/main/jattn/variants/README.md), and
# [measurements](https://github.com/jattn/jattn/blob/main/jattn/benchmarks/README.md) up to 65,536 tokens.
