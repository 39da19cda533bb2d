"""CLIP beyond what is compared with Hugging Face: the ResNet against its definition in NumPy, and bad inputs."""

import numpy as np
import pytest
from flax import nnx
from model_cases import random_tensor

from jattn import models
from jattn.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from jattn.models.clip_resnet import CLIPResNet, CLIPResNetConfig

RESNET = CLIPResNetConfig(width=4, stages=(1, 2, 1, 1), image_size=64, projected_features=6)
TEXT = CLIPTextConfig(vocabulary=11, eos_token=10, features=8, depth=1, heads=2, mlp_features=8)
VISION = CLIPVisionConfig(image_size=6, patch_size=3, features=8, depth=1, heads=2, mlp_features=8)


def convolved(x, kernel, stride=1):
    """`kernel [out, in, size, size]` on `x [n, height, width, in]`, zeros around it."""
    size = kernel.shape[-1]
    x = np.pad(x, ((0, 0), *[(size // 2,) * 2] * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ocij->nhwo", windows, kernel)


def defined(tensors, images, heads):
    """The ResNet in float64, by the names of the published files."""
    tensors = {name: one.astype(np.float64) for name, one in tensors.items()}

    def part(convolution, norm, x, stride=1):
        x = convolved(x, tensors[f"{convolution}.weight"], stride) - tensors[f"{norm}.running_mean"]
        x = x / np.sqrt(tensors[f"{norm}.running_var"] + 1e-5)
        return x * tensors[f"{norm}.weight"] + tensors[f"{norm}.bias"]

    def halved(x):
        n, height, width, channels = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))

    def relu(x):
        return np.maximum(x, 0)

    x = images.astype(np.float64)
    for index in (1, 2, 3):
        x = relu(part(f"conv{index}", f"bn{index}", x, 2 if index == 1 else 1))
    x = halved(x)
    for stage, count in enumerate(RESNET.stages, 1):
        for block in range(count):
            name = f"layer{stage}.{block}."
            shrinks = stage > 1 and block == 0
            inner = relu(part(f"{name}conv1", f"{name}bn1", x))
            inner = relu(part(f"{name}conv2", f"{name}bn2", inner))
            inner = part(f"{name}conv3", f"{name}bn3", halved(inner) if shrinks else inner)
            if f"{name}downsample.0.weight" in tensors:
                x = part(f"{name}downsample.0", f"{name}downsample.1", halved(x) if shrinks else x)
            x = relu(x + inner)
    n, height, width, channels = x.shape
    x = x.reshape(n, height * width, channels)
    x = np.concatenate([x.mean(1, keepdims=True), x], 1) + tensors["attnpool.positional_embedding"]

    def projected(name, x):
        found = x @ tensors[f"attnpool.{name}_proj.weight"].T + tensors[f"attnpool.{name}_proj.bias"]
        return found.reshape(*x.shape[:-1], heads, -1)

    scores = np.einsum("nhd,nkhd->nhk", projected("q", x[:, 0]), projected("k", x)) / np.sqrt(channels // heads)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    seen = np.einsum("nhk,nkhd->nhd", weights, projected("v", x)).reshape(n, channels)
    return seen @ tensors["attnpool.c_proj.weight"].T + tensors["attnpool.c_proj.bias"]


def test_resnet_is_as_defined():
    shapes = {name: one.shape for name, one in models.to_tensors(CLIPResNet(RESNET, rngs=nnx.Rngs(0))).items()}
    tensors = {name: random_tensor(name, shape) for name, shape in shapes.items()}
    tensors |= {name: 1 + one**2 for name, one in tensors.items() if name.endswith("running_var")}
    tensors["attnpool.q_proj.weight"] *= 3  # so that weights differ
    model = models.from_tensors(tensors, RESNET, CLIPResNet)
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    got, want = nnx.jit(lambda model, images: model(images))(model, images), defined(tensors, images, RESNET.pool_heads)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_resnet_is_the_vision_of_clip():
    config = CLIPConfig(text=TEXT, vision=RESNET, projected_features=6)
    assert CLIPConfig.from_json(config.to_json()) == config
    tensors = models.to_tensors(CLIP(config, rngs=nnx.Rngs(0)))
    assert "visual.attnpool.q_proj.weight" in tensors and "visual_projection.weight" not in tensors
    again = models.to_tensors(models.from_tensors(tensors, config, CLIP))
    assert all(np.array_equal(again[name], one) for name, one in tensors.items())


BAD = {
    "a text without its end": (CLIPText, TEXT, np.array([[3, 10], [3, 4]]), "the end of the text"),
    "channels first": (CLIPVision, VISION, np.zeros((2, 3, 6, 6), np.float32), "channels come last"),
    "another size": (
        CLIPVision,
        VISION,
        np.zeros((2, 9, 6, 3), np.float32),
        r"`images` must have shape \[..., 6, 6, 3\]",
    ),
    "bytes": (CLIPVision, VISION, np.zeros((2, 6, 6, 3), np.uint8), "floating-point"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name):
    kind, config, inputs, message = BAD[name]
    model = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        model(inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_config": {"model_type": "convnext"}}, "`model_type` of `vision_config`"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "`eos_token`"),
        ({"text_config": {"hidden_size": 10, "num_attention_heads": 4}}, "heads"),
        ({"vision_config": {"model_type": "clip_resnet", "projection_dim": 8}}, "`projected_features` of texts"),
    ],
)
def test_refuses_configurations(settings, message):
    with pytest.raises(ValueError, match=message):
        CLIPConfig.from_json(settings)
