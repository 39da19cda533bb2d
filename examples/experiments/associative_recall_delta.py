"""Associative recall: the delta rule, which overwrites what a state stores for a key, and the linear transformer.

The task is that of `associative_recall.py`. All models have two layers of the same width, two heads and sinusoidal
positions. The delta rules also have their short convolutions of four tokens. The reduced form has DeltaNet alone.
"""

from collections.abc import Sequence

from report import Result, main
from sequences import WIDTH, Model, recalled

from jattn.variants.kernelized import LinearTransformer
from jattn.variants.recurrent import DeltaNet, GatedDeltaNet


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """Accuracies, compared with the linear transformer's."""
    models = {
        "linear": Model(LinearTransformer(WIDTH, 2), 1200),
        "DeltaNet": Model(DeltaNet(WIDTH, 2, 32, 32), 1200),
    }
    if not fast:
        models["Gated DeltaNet"] = Model(GatedDeltaNet(WIDTH, 2, 32, 32), 1000)
    right = recalled(models, fast=fast, seed=seed)
    bar = 0.62 if fast else 0.9
    return [Result(name, right[name], right["linear"], "linear", bar) for name in models if name != "linear"]


if __name__ == "__main__":
    main(run, __doc__)
