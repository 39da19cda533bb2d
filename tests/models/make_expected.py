"""Write what Hugging Face's models give for each case of `model_cases`: `python tests/models/make_expected.py FAMILY`.

Without a name, for all families. Needs torch and transformers (the extra `peers`). A file has the outputs of each case,
and of the gradient of each parameter its norm and a random projection.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))

import model_peers
from model_cases import CASES

FOLDER = Path(__file__).parent / "expected"


def main(families: list[str]) -> None:
    for family in families or CASES:
        arrays = {}
        for name, case in CASES[family].items():
            outputs, gradients = model_peers.run(case)
            arrays |= {f"{name}/output/{key}": one for key, one in outputs.items()}
            summary = model_peers.summary(gradients)
            arrays |= {f"{name}/gradients": np.stack([*summary.values()]), f"{name}/names": np.array([*summary])}
        FOLDER.mkdir(exist_ok=True)
        np.savez_compressed(FOLDER / f"{family}.npz", **arrays)
        print(family, (FOLDER / f"{family}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
