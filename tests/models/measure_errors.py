"""Print the worst error of each family beside transformers, for the table in jattn/models/README.md.

`python tests/models/measure_errors.py FAMILY...`, by default of all families. Needs torch and transformers (the extra
`peers`). Errors are relative to the largest number: of an output, or of a parameter's gradient.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
sys.path.append(str(Path(__file__).parent))

import model_peers
from model_cases import CASES
from test_families import run


def error(got: np.ndarray, want: np.ndarray, least: float = 1e-30) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), least))


def main(families: list[str]) -> None:
    for family in families or CASES:
        worst = {"outputs": 0.0, "gradients": 0.0}
        for case in CASES[family].values():
            outputs, gradients = run(case)
            want, want_gradients = model_peers.run(case)
            least = 1e-3 * max(np.abs(one).max() for one in want_gradients.values())
            worst["outputs"] = max([worst["outputs"], *(error(outputs[name], want[name]) for name in want)])
            found = (error(gradients[name], one, least) for name, one in want_gradients.items())
            worst["gradients"] = max([worst["gradients"], *found])
        print(f"{family}: outputs {worst['outputs']:.1e}, gradients {worst['gradients']:.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
