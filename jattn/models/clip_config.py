"""Configurations of CLIP: of its text model, its vision transformer, its ResNet, and the two together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ..foundation.arguments import check_multiple, check_positive
from ..foundation.arrays import describe
from .config import Config
from .encoder import EncoderConfig
from .patches import as_pair

_NAMES = {
    **{name: field for name, field in EncoderConfig.NAMES.items() if "dropout" not in field},
    "attention_dropout": "attention_dropout",
    "projection_dim": "projected_features",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(EncoderConfig):
    """The configuration of CLIP's text model; defaults are those of ViT-B/32. Sizes of blocks: see `EncoderConfig`.

    Args:
        vocabulary: number of tokens.
        max_length: number of positions.
        projected_features: features of the vectors that texts and images share.

    Raises:
        ValueError: a number is out of its range; `eos_token` is not one token.

    >>> CLIPTextConfig(features=64, heads=4).eos_token
    49407
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **_NAMES,
        "vocab_size": "vocabulary",
        "max_position_embeddings": "max_length",
    }
    IGNORED: ClassVar[tuple[str, ...]] = ("dropout",)  # which no implementation reads

    model_type: str = "clip_text_model"
    bos_token: int | None = 49406
    eos_token: int | tuple[int, ...] | None = 49407
    pad_token: int | None = 1
    vocabulary: int = 49408
    max_length: int = 77
    features: int = 512
    heads: int = 8
    mlp_features: int = 2048
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    projected_features: int = 512

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            vocabulary=self.vocabulary, max_length=self.max_length, projected_features=self.projected_features
        )
        if not isinstance(self.eos_token, int):
            raise ValueError(f"`eos_token` must be the one token whose state stands for a text; got {self.eos_token}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(EncoderConfig):
    """The configuration of CLIP's vision transformer; defaults are those of ViT-B/32.

    Args:
        image_size: height and width of images, or one number for both.
        patch_size: height and width of a patch, likewise.
        channels: channels of images.
        projected_features: features of the vectors that texts and images share.

    Raises:
        ValueError: a number is out of its range.

    >>> CLIPVisionConfig(patch_size=16).features
    768
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **_NAMES,
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "channels",
    }
    IGNORED: ClassVar[tuple[str, ...]] = ("dropout",)

    model_type: str = "clip_vision_model"
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 32
    channels: int = 3
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    projected_features: int = 512

    def __post_init__(self):
        super().__post_init__()
        for name in ("image_size", "patch_size"):
            as_pair(name, getattr(self, name))
        check_positive(channels=self.channels, projected_features=self.projected_features)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPResNetConfig(Config):
    """The configuration of CLIP's ResNet with attention pooling; defaults are those of RN50.

    Args:
        image_size: height and width of images, a multiple of 32.
        channels: channels of images.
        width: channels after the stem; the last stage has 32 times as many.
        stages: the number of blocks of each of the four stages.
        heads: heads of the attention pooling; by default one for 64 channels, at least one.
        projected_features: features of the vectors that texts and images share.
        epsilon: ε of the batch norms.

    Raises:
        ValueError: a number is out of its range; sizes do not divide; there are not four stages.

    >>> CLIPResNetConfig(width=80, stages=(4, 6, 10, 6), image_size=288).pool_heads
    40
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "image_size": "image_size",
        "num_channels": "channels",
        "width": "width",
        "layers": "stages",
        "num_attention_heads": "heads",
        "projection_dim": "projected_features",
        "batch_norm_eps": "epsilon",
    }

    model_type: str = "clip_resnet"
    image_size: int = 224
    channels: int = 3
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 6, 3)
    heads: int | None = None
    projected_features: int = 1024
    epsilon: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        check_positive(image_size=self.image_size, channels=self.channels, width=self.width, heads=self.pool_heads)
        check_positive(projected_features=self.projected_features)
        if len(self.stages) != 4 or min(self.stages) < 1:
            raise ValueError(f"`stages` must be four numbers of blocks, each at least 1; got {self.stages}.")
        if self.image_size % 32 or self.width % 2:
            raise ValueError(
                f"`image_size` must be a multiple of 32 and `width` even; got {self.image_size} and {self.width}."
            )
        check_multiple("heads", channels=32 * self.width, heads=self.pool_heads)

    @property
    def pool_heads(self) -> int:
        """Heads of the attention pooling."""
        return max(self.width // 2, 1) if self.heads is None else self.heads


VISION: Mapping[str, type[Config]] = {"clip_vision_model": CLIPVisionConfig, "clip_resnet": CLIPResNetConfig}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig(Config):
    """The configuration of CLIP.

    Args:
        text: of the text model.
        vision: of the model of images, a `CLIPVisionConfig` or a `CLIPResNetConfig`.
        projected_features: features of the vectors that texts and images share.
        log_scale: the logarithm of the scale of logits before training, by default nearly ln(1/.07).
        remat, scan: as in `Config`; given here, they are those of `text` and `vision` too.

    Raises:
        ValueError: a value is of another kind; a ResNet gives vectors of another size.

    >>> CLIPConfig.from_json({"text_config": {"hidden_size": 64}, "vision_config": {}}).text.features
    64
    """

    NAMES: ClassVar[Mapping[str, str]] = {"projection_dim": "projected_features", "logit_scale_init_value": "log_scale"}
    IGNORED: ClassVar[tuple[str, ...]] = ("text_config_dict", "vision_config_dict")  # what the two once repeated

    model_type: str = "clip"
    text: CLIPTextConfig = dataclasses.field(default_factory=CLIPTextConfig)
    vision: CLIPVisionConfig | CLIPResNetConfig = dataclasses.field(default_factory=CLIPVisionConfig)
    projected_features: int = 512
    log_scale: float = 2.6592

    def __post_init__(self):
        super().__post_init__()
        check_positive(projected_features=self.projected_features)
        how = {name: True for name in ("remat", "scan") if getattr(self, name)}
        object.__setattr__(self, "text", dataclasses.replace(self.text, **how))
        object.__setattr__(self, "vision", dataclasses.replace(self.vision, **how))
        if isinstance(self.vision, CLIPResNetConfig) and self.vision.projected_features != self.projected_features:
            raise ValueError(
                f"`vision` must give {self.projected_features} features, the `projected_features` of texts; got "
                f"{self.vision.projected_features}."
            )

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        """The configuration that a `config.json` describes, as in `Config.from_json`."""
        parts = {name: settings.get(f"{name}_config") or {} for name in ("text", "vision")}
        for name, one in parts.items():
            if not isinstance(one, Mapping):
                raise ValueError(f"`{name}_config` in config.json must be a JSON object; got {describe(one)}.")
        kind = parts["vision"].get("model_type", "clip_vision_model")
        if kind not in VISION:
            raise ValueError(f"`model_type` of `vision_config` must be one of {', '.join(VISION)}; got {kind!r}.")
        rest = {name: one for name, one in settings.items() if name not in ("text_config", "vision_config")}
        whole = super().from_json(rest, ignore)
        text = CLIPTextConfig.from_json(parts["text"], ignore)
        return dataclasses.replace(whole, text=text, vision=VISION[kind].from_json(parts["vision"], ignore))

    def to_json(self) -> dict[str, Any]:
        """The settings as `config.json` has them."""
        parts = {"text_config": self.text.to_json(), "vision_config": self.vision.to_json()}
        return {**super().to_json(), **parts}
