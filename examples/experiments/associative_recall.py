"""Associative recall: Hyena and softmax attention beside the linear transformer.

64 tokens of an alphabet of 20: keys and values in turn, paired anew in each row; to be named is the value of a key that
has been seen before (one in 10 by chance). All models have two layers of the same width, and no convolution but Hyena's
own. What is hard is to find that a value belongs to the key before it. Softmax attention has rotary positions, which
show it at once; with sinusoids it depended on the seed whether 750 steps were enough (.93 and .28). Hyena's own
convolutions see it, without positions. The linear transformer has sinusoids.

The reduced form has 16 tokens of 8, and no softmax.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from report import Result, main
from sequences import LENGTH, WIDTH, Model, Softmax, recalled

import jattn
from jattn.layers import multi_head
from jattn.variants.attention_free import Hyena
from jattn.variants.kernelized import LinearTransformer


class Rotary(Softmax):
    """Softmax attention with rotary positions."""

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
        """`[..., length, features]`."""
        return multi_head(parameters, inputs, mask=jattn.masks.Causal(), rotary=True)


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """Accuracies beside the linear transformer's."""
    models = {
        "linear": Model(LinearTransformer(WIDTH, 2), 2000),
        "Hyena": Model(Hyena(WIDTH, max_len=LENGTH), 2000, rate=5e-3, positions=False),
    }
    if not fast:
        models["softmax"] = Model(Rotary(WIDTH, 2), 400, rate=3e-3, positions=False)
    right = recalled(models, fast=fast, seed=seed)
    bars = {"Hyena": 0.62 if fast else 0.9, "softmax": 0.76}
    return [Result(name, right[name], right["linear"], "linear", bars[name]) for name in models if name != "linear"]


if __name__ == "__main__":
    main(run, __doc__)
