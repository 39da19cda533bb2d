"""CLIP's ResNet: three convolutions in the stem, anti-aliased strides, attention pooling (arXiv:2103.00020, 2.4)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..nnx import Layer
from ..variants.vision import AttentionPool
from .blocks import through
from .checkpoint.rules import out_rules, projection_rules
from .checkpoint.table import Rule, Table
from .clip_config import CLIPResNetConfig
from .patches import checked_images
from .registry import Family


class Convolution(nnx.Module):
    """norm(W * x): a convolution without bias, and a batch norm by its running statistics until `model.train()`.

    Args:
        channels, out_channels: channels of inputs and outputs.
        size: height and width of the kernel; zeros around the image keep its size.
        stride: every how many pixels there is an output.
        epsilon: ε of the norm.
        options: `dtype`, `param_dtype` and `rngs`.
    """

    def __init__(
        self, channels: int, out_channels: int, size: int = 1, *, stride: int = 1, epsilon: float, **options: Any
    ):
        self.convolution = nnx.Conv(
            channels,
            out_channels,
            (size, size),
            strides=(stride, stride),
            padding=size // 2,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            **options,
        )
        self.norm = nnx.BatchNorm(out_channels, use_running_average=True, momentum=0.9, epsilon=epsilon, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., height, width, channels]` -> `[..., height / stride, width / stride, out_channels]`."""
        return self.norm(self.convolution(x))


class Bottleneck(nnx.Module):
    """relu(x' + norm(W₃ pool(relu(norm(W₂ * relu(norm(W₁ x))))))), where x' is x, or norm(W₄ pool(x)).

    The pooling takes means of stride x stride pixels; it stands for the stride of the second convolution. There is a W₄
    if the stride or the channels change.

    Args:
        channels: channels of x.
        width: channels inside; the output has four times as many.
        stride: the factor by which height and width shrink.
        options: `epsilon`, `dtype`, `param_dtype` and `rngs`.
    """

    def __init__(self, channels: int, width: int, stride: int, **options: Any):
        self.first = Convolution(channels, width, **options)
        self.second = Convolution(width, width, 3, **options)
        self.third = Convolution(width, 4 * width, **options)
        changes = stride > 1 or channels != 4 * width
        self.shortcut = Convolution(channels, 4 * width, **options) if changes else None
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., height, width, channels]` -> `[..., height / stride, width / stride, 4 * width]`."""
        inner = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
        inner = self.third(_pooled(inner, self.stride))
        if self.shortcut is not None:
            x = self.shortcut(_pooled(x, self.stride))
        return jax.nn.relu(x + inner)


class CLIPResNet(nnx.Module):
    """CLIP's ResNet: images `[..., height, width, channels]` -> a vector each, `[..., projected_features]`.

        x = pool(relu(norm(W₃ * relu(norm(W₂ * relu(norm(W₁ * images)))))))
        x = Bottleneck(x)                                 blocks of four stages; each but the first halves the size
        out = attention of mean(x) to the pixels of x     `jattn.variants.vision.AttentionPool`

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.clip_resnet import CLIPResNet, CLIPResNetConfig
    >>> config = CLIPResNetConfig(width=2, stages=(1, 1, 1, 1), image_size=32, projected_features=4)
    >>> model = CLIPResNet(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 32, 32, 3))).shape
    (2, 4)
    """

    def __init__(self, config: CLIPResNetConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs, "epsilon": config.epsilon}
        self.config = config
        width = config.width
        self.stem = nnx.List(
            [
                Convolution(config.channels, width // 2, 3, stride=2, **options),
                Convolution(width // 2, width // 2, 3, **options),
                Convolution(width // 2, width, 3, **options),
            ]
        )
        stages, channels = [], width
        for index, count in enumerate(config.stages):
            blocks = []
            for block in range(count):
                stride = 2 if index and not block else 1
                blocks.append(Bottleneck(channels, width * 2**index, stride, **options))
                channels = 4 * width * 2**index
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        side = config.image_size // 32
        pool = AttentionPool(side, side, channels, config.pool_heads, config.projected_features)
        self.pool = Layer(pool, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, images: Any) -> jax.Array:
        """The vector of each image.

        Args:
            images: floating-point `[..., height, width, channels]`; channels come last.

        Raises:
            ValueError: images have another size or are integers.
        """
        return self.pool(self.features(images))

    def features(self, images: Any) -> jax.Array:
        """What is pooled: `[..., height / 32, width / 32, 32 * width]`."""
        x = checked_images(images, (self.config.image_size, self.config.image_size), self.config.channels)
        for convolution in self.stem:
            x = jax.nn.relu(convolution(x))
        x = _pooled(x, 2)
        for stage in self.stages:
            first, *others = stage
            x = through([first], x, config=self.config)  # others have no shortcut
            x = through(others, x, config=self.config)
        return x


def _pooled(x: jax.Array, size: int) -> jax.Array:
    """The means of size x size pixels."""
    return x if size == 1 else nnx.avg_pool(x, (size, size), (size, size))


def _convolution(convolution: str, norm: str, path: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{convolution}.weight", f"{path}.convolution.kernel", "o i h w -> h w i o"),
        Rule(f"{norm}.weight", f"{path}.norm.scale"),
        Rule(f"{norm}.bias", f"{path}.norm.bias"),
        Rule(f"{norm}.running_mean", f"{path}.norm.mean"),
        Rule(f"{norm}.running_var", f"{path}.norm.var"),
    )


def _rules() -> tuple[Rule, ...]:
    """The names of the published files, which count the stem and the stages from 1."""
    rules: list[Rule] = []
    for index in range(3):
        rules.extend(_convolution(f"conv{index + 1}", f"bn{index + 1}", f"stem.{index}"))
    for index in range(4):
        tensor, path = f"layer{index + 1}.{{block}}.", f"stages.{index}.{{block}}."
        for number, name in enumerate(("first", "second", "third"), 1):
            rules.extend(_convolution(f"{tensor}conv{number}", f"{tensor}bn{number}", path + name))
        rules.extend(_convolution(f"{tensor}downsample.0", f"{tensor}downsample.1", f"{path}shortcut"))
    rules.append(Rule("attnpool.positional_embedding", "pool.positions"))
    for name in ("query", "key", "value"):
        rules.extend(projection_rules(f"attnpool.{name[0]}_proj", f"pool.{name}"))
    return (*rules, *out_rules("attnpool.c_proj", "pool.out"))


RULES = _rules()

FAMILY = Family(
    config=CLIPResNetConfig,
    models={"CLIPResNet": CLIPResNet},
    table=Table(RULES, prefix="visual.", ignored=("*num_batches_tracked",)),
)
