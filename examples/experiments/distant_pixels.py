"""Do two distant pixels match? A small CNN cannot see both at once; with one block of attention it can.

An image is empty except for two marked pixels, one near its upper left corner and one near its lower right corner, each
of one of three colors. The question at each of the two is whether the other has the same color; chance is 0.5. All
networks have two 3x3 convolutions and a readout at every pixel, so a pixel sees 5x5. One has a non-local block between
the two, one an attention-augmented convolution in place of the second. The figure is the accuracy on new images.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

from jattn.variants.vision import AugmentedConvolution, NonLocal

COLORS, CHANNELS = 3, 16


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The accuracy with a non-local block and with an augmented convolution, compared with convolutions alone."""
    side, steps = (7, 120) if fast else (12, 500)
    block = NonLocal(CHANNELS, CHANNELS)
    augmented = AugmentedConvolution(
        side, side, CHANNELS, CHANNELS, attention_channels=CHANNELS // 2, key_channels=CHANNELS, heads=1
    )

    def pictures(key, count):
        """Images, the two places `[count, 2]` as pixel numbers, and whether the colors are equal."""
        keys = jax.random.split(key, 4)
        corners = jax.random.randint(keys[0], (count, 2, 2), 0, 2) + jnp.array([0, side - 2])[:, None]
        at = corners[..., 0] * side + corners[..., 1]
        color = jax.random.randint(keys[1], (count,), 0, COLORS)
        same = jax.random.bernoulli(keys[2], 0.5, (count,))
        other = jnp.where(same, color, (color + jax.random.randint(keys[3], (count,), 1, COLORS)) % COLORS)
        marks = jax.nn.one_hot(jnp.stack([color, other], 1), COLORS)
        images = jnp.zeros((count, side * side, COLORS)).at[jnp.arange(count)[:, None], at].set(marks)
        return images.reshape(count, side, side, COLORS), at, same

    def convolve(images, weight):
        return jax.lax.conv_general_dilated(images, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def first(key):
        keys = jax.random.split(key, 6)
        draw = jax.nn.initializers.he_normal()
        return {
            "one": draw(keys[0], (3, 3, COLORS, CHANNELS)),
            "two": draw(keys[1], (3, 3, CHANNELS, CHANNELS)),
            "hidden": draw(keys[2], (1, 1, CHANNELS, 2 * CHANNELS)),
            "out": draw(keys[3], (1, 1, 2 * CHANNELS, 1)),
            "block": block.init(keys[4]),
            "augmented": augmented.init(keys[5]),
        }

    def answers(parameters, images, at, kind):
        x = jax.nn.relu(convolve(images, parameters["one"]))
        if kind == "non-local":
            x = block(parameters["block"], x)
        x = augmented(parameters["augmented"], x) if kind == "augmented" else convolve(x, parameters["two"])
        x = convolve(jax.nn.relu(convolve(jax.nn.relu(x), parameters["hidden"])), parameters["out"])
        return jnp.take_along_axis(x.reshape(len(x), -1), at, 1)

    def loss(parameters, key, kind):
        images, at, same = pictures(key, 32)
        given = answers(parameters, images, at, kind)
        return optax.sigmoid_binary_cross_entropy(given, same[:, None].astype(given.dtype)).mean()

    def right(kind):
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

        def step(carry, key):
            parameters, state = carry
            updates, state = optimizer.update(jax.grad(loss)(parameters, key, kind), state)
            return (optax.apply_updates(parameters, updates), state), None

        @jax.jit
        def train(key):
            start, data, test = jax.random.split(key, 3)
            parameters = first(start)
            carry = (parameters, optimizer.init(parameters))
            (parameters, _), _ = jax.lax.scan(step, carry, jax.random.split(data, steps))
            images, at, same = pictures(test, 500)
            return ((answers(parameters, images, at, kind) > 0) == same[:, None]).mean()

        return float(train(jax.random.key(seed)))

    plain = right("plain")
    bar = 0.9 if fast else 0.95
    return [
        Result("accuracy with a non-local block", right("non-local"), plain, "convolutions alone", bar),
        Result("accuracy with an augmented convolution", right("augmented"), plain, "convolutions alone", bar),
    ]


if __name__ == "__main__":
    main(run, __doc__)
