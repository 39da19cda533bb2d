"""Which atom of the products was which of the reactants: a head of a language model of chemistry knows.

    pip install -e '.[examples,models]'        # in a clone of the repository
    python examples/map_atoms.py               # a few seconds; downloads 3 MB

rxnmapper is an ALBERT that was trained to fill in masked tokens of chemical reactions, and never told which atom goes
where. One of its 96 heads maps them nevertheless (Schwaller et al. 2021, doi:10.1126/sciadv.abe4166). This loads the
published weights, records the attention of all heads while the fast path runs, and compares the largest weight of each
atom with the true map. Prints a table, and writes `heads.png` (how many atoms each head maps right) and `map.png` (the
best head on one reaction) to `--out`.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from published import packages, reactions
from published.reactions import HEAD, LAYER
from tqdm import tqdm

import jattn


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns the share of atoms that the published head maps right, and the median of all heads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("reaction", nargs="*", help="SMILES to draw, as reactants>>products")
    parser.add_argument("--out", type=Path, default=Path("runs/map_atoms"), help="folder for pictures")
    given = parser.parse_args(arguments)
    try:
        drawn = [reactions.read(smiles) for smiles in given.reaction]
    except ValueError as error:
        parser.error(str(error))

    wheel = packages.opened(packages.RXNMAPPER)
    model, vocabulary = reactions.load(wheel)
    known = reactions.shipped(wheel)
    tokens, mask = reactions.encode(known, vocabulary)
    with jattn.record() as seen:
        model(tokens, attention_mask=mask)
    layers = tqdm(seen.values(), total=len(seen), desc="layers", leave=False)
    right = np.array([reactions.accuracy(np.asarray(weights), known) for weights in layers])  # [layers, heads]

    figures = {"published head": float(right[LAYER, HEAD]), "median head": float(np.median(right))}
    print(f"atoms mapped right, of {sum(len(one.products) for one in known)} in {len(known)} reactions:")
    print(f"  layer {LAYER}, head {HEAD}     {figures['published head']:.3f}")
    print(f"  median of {right.size} heads   {figures['median head']:.3f}")

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    draw_heads(right, given.out / "heads.png")
    drawn = drawn or known[:1]
    tokens, mask = reactions.encode(drawn, vocabulary)
    with jattn.record(layers=[LAYER], heads=[HEAD]) as seen:
        model(tokens, attention_mask=mask)
    (weights,) = seen.values()
    pictures = [given.out / ("map.png" if number == 1 else f"map-{number}.png") for number in range(1, len(drawn) + 1)]
    for one, reaction, path in zip(np.asarray(weights)[:, 0], drawn, pictures, strict=True):
        draw_map(one, reaction, path)
    print(f"pictures: {', '.join(map(str, (given.out / 'heads.png', *pictures)))}")
    return figures


def draw_heads(right: np.ndarray, path: Path) -> None:
    """The share of atoms that each head maps right, `[layers, heads]`."""
    figure, axes = plt.subplots(figsize=(4.5, 5), layout="constrained")
    picture = axes.imshow(right, vmin=0, vmax=1, cmap="cividis")
    axes.set(ylabel="layer", title="Atoms mapped right", yticks=range(len(right)))
    axes.add_patch(Rectangle((HEAD - 0.5, LAYER - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    axes.set_xlabel("head (red: the one that the authors chose)")
    figure.colorbar(picture, label="share of atoms")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_map(weights: np.ndarray, reaction: reactions.Reaction, path: Path) -> None:
    """The weights `[queries, keys]` of a head, from atoms of the products to those of the reactants."""
    shown = weights[np.ix_(reaction.products, reaction.reactants)]
    width = 1.5 + 0.28 * shown.shape[1]
    figure, axes = plt.subplots(figsize=(width, 1.5 + 0.28 * shown.shape[0]), layout="constrained")
    axes.imshow(shown, vmin=0, vmax=1, cmap="cividis")
    for row, place in enumerate(reaction.truth):
        if place >= 0:
            axes.plot(
                np.searchsorted(reaction.reactants, place), row, "o", color="white", markersize=9, fillstyle="none"
            )
    axes.set_xticks(range(shown.shape[1]), [reaction.tokens[i] for i in reaction.reactants])
    axes.set_yticks(range(shown.shape[0]), [reaction.tokens[i] for i in reaction.products])
    axes.set(
        xlabel="atoms of the reactants",
        ylabel="atoms of the products",
        title=f"Layer {LAYER}, head {HEAD}; circles: the true map",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
