"""Write what Hugging Face's `generate` gives for the cases of `generation_cases`.

`python tests/models/make_expected_generation.py` needs torch and transformers (the extra `peers`).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))

from generation_cases import BEAMS, MODELS, RULED, WAYS, hugging_face, hugging_face_ruled, peer

FILE = Path(__file__).parent / "expected" / "generation.npz"


def main() -> None:
    arrays = {}
    for name in MODELS:
        model = peer(name)
        for way, options in WAYS.items():
            found = hugging_face(model, options)
            arrays |= {f"{name}/{way}/{key}": one for key, one in found.items()}
            print(name, way, found["tokens"].tolist())
    for rules in RULED:
        for beams in BEAMS:
            found = hugging_face_ruled(rules, beams)
            arrays |= {f"{rules}/{beams}/{key}": one for key, one in found.items()}
            print(rules, beams, found["tokens"].tolist())
    np.savez_compressed(FILE, **arrays)
    print(FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
