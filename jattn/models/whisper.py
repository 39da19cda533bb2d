"""Whisper (Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv:2212.04356)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arguments import check_positive
from ..foundation.arrays import as_array, describe, dtype_of
from ..positions import sinusoidal
from .checkpoint.table import Rule, Table
from .embedding import Embedding, head_of, logits_of
from .encoder_decoder import EncoderDecoder
from .layers import ACTIVATIONS, Fixed, dropout, normal
from .registry import Family
from .stacks import StackConfig, make_stack, stack_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig(StackConfig):
    """The configuration of Whisper; defaults are those of the smallest published model. As in `StackConfig`, and:

    Args:
        mels: number of mel bands of the inputs: 80, or 128 for the third large model.
        max_inputs: number of positions of the encoder, each of two frames.
        max_length: number of positions of the decoder.

    Raises:
        ValueError: a number is out of its range; heads do not divide the features.

    >>> WhisperConfig().max_inputs
    1500
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **StackConfig.NAMES,
        "num_mel_bins": "mels",
        "max_source_positions": "max_inputs",
        "max_target_positions": "max_length",
    }
    FIXED: ClassVar[Mapping[str, tuple]] = {
        "scale_embedding": (False,),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
        "apply_spec_augment": (False,),
    }
    IGNORED: ClassVar[tuple[str, ...]] = (
        "num_hidden_layers",  # repeats encoder_layers
        "init_std",
        "mask_time_prob",  # masks of inputs, which apply_spec_augment turns on
        "mask_time_length",
        "mask_time_min_masks",
        "mask_feature_prob",
        "mask_feature_length",
        "mask_feature_min_masks",
        "use_weighted_layer_sum",  # of a head that is not here
        "classifier_proj_size",
        "median_filter_width",  # of timestamps
        "alignment_heads",
    )

    model_type: str = "whisper"
    vocabulary: int = 51865
    mels: int = 80
    features: int = 384
    depth: int = 4
    decoder_depth: int = 4
    heads: int = 6
    decoder_heads: int = 6
    mlp_features: int = 1536
    decoder_mlp_features: int = 1536
    activation: str = "gelu"
    max_inputs: int = 1500
    max_length: int = 448
    decoder_start_token: int = 50257
    bos_token: int | None = 50256
    eos_token: int | tuple[int, ...] | None = 50256
    pad_token: int | None = 50256

    def __post_init__(self):
        super().__post_init__()
        check_positive(mels=self.mels, max_inputs=self.max_inputs, max_length=self.max_length)


class Whisper(EncoderDecoder):
    """Whisper without a head: log-mel features `[..., mels, frames]` and tokens `[..., length]` -> hidden states.

        x = gelu(conv(gelu(conv(features)))) + sinusoids          convolutions of 3 frames, the second with stride 2
        x = x + attention(norm(x)),  x = x + mlp(norm(x))         for each block of the encoder
        encoded = norm(x)
        y = E[tokens] + P[positions]
        y = y + attention(norm(y)),  y = y + cross(norm(y), encoded),  y = y + mlp(norm(y))
        hidden = norm(y)                                          [..., length, features]

    `jattn.models.audio.log_mel` makes the features from samples, as does Hugging Face's `WhisperFeatureExtractor`.
    Whisper was trained on 30 seconds at a time, shorter sounds padded with silence and without a mask. Fewer frames are
    accepted here; Hugging Face takes only `2 * max_inputs`. An `attention_mask`, if given, is over the
    `ceil(frames / 2)` positions of the encoder.

    The sinusoids are an array of the checkpoint that is not trained.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.whisper import Whisper, WhisperConfig
    >>> sizes = {"features": 8, "heads": 2, "decoder_heads": 2, "depth": 1, "decoder_depth": 1, "vocabulary": 11}
    >>> config = WhisperConfig(mels=4, max_inputs=6, max_length=9, mlp_features=16, decoder_mlp_features=16, **sizes)
    >>> model = Whisper(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 4, 12)), jax.numpy.zeros((2, 3), int)).shape
    (2, 3, 8)
    """

    config: WhisperConfig

    def __init__(self, config: WhisperConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config, self.longest = config, config.max_length
        convolve = functools.partial(nnx.Conv, kernel_size=(3,), padding=((1, 1),), **options)
        self.first = convolve(config.mels, config.features)
        self.second = convolve(config.features, config.features, strides=(2,))
        places = sinusoidal(np.arange(config.max_inputs), config.features, layout="half", inclusive=True)
        self.input_positions = Fixed(places.astype(param_dtype))
        embed = functools.partial(Embedding, features=config.features, embedding_init=normal(0.02), **options)
        self.embedding, self.position_embedding = embed(config.vocabulary), embed(config.max_length)
        self.dropout = dropout(config.dropout, rngs)
        # Keys have no bias: it would not change any weight.
        choices = {"use_bias": ("query", "value", "out"), "kernel_init": normal(0.02), **options}
        self.encoder, self.decoder = (make_stack(config, decoder=decoder, **choices) for decoder in (False, True))

    def encoded_shape(self, inputs: Any) -> tuple[int, ...]:
        """The shape `[..., ceil(frames / 2)]` of what is encoded."""
        shape = super().encoded_shape(inputs)
        return (*shape[:-2], -(-shape[-1] // 2)) if len(shape) > 1 else shape

    def embed_inputs(self, inputs: Any, positions: Any = None) -> jax.Array:
        """The two convolutions and positions: `[..., mels, frames]` -> `[..., ceil(frames / 2), features]`.

        Raises:
            ValueError: inputs are not such features, or there are more than `2 * max_inputs` frames.
        """
        del positions  # of sound, which is not padded on the left
        inputs, mels, most = as_array(inputs), self.config.mels, 2 * self.config.max_inputs
        dtype = dtype_of(inputs)
        floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        if not floating or inputs.ndim < 2 or inputs.shape[-2] != mels or not 0 < inputs.shape[-1] <= most:
            raise ValueError(
                f"`inputs` must be log-mel features [..., {mels}, frames] of at most {most} frames, as "
                f"`jattn.models.audio.log_mel(samples, rate, mels={mels})` gives; got {describe(inputs)}."
            )
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self.second(gelu(self.first(jnp.swapaxes(inputs, -1, -2)))))
        return self.dropout(x + self.input_positions[...][: x.shape[-2]].astype(x.dtype))

    def embed(self, tokens: jax.Array, positions: Any) -> jax.Array:
        """The sum of the embeddings of tokens and positions."""
        return self.dropout(self.embedding(tokens) + self.position_embedding(jnp.asarray(positions)))


class WhisperForConditionalGeneration(Whisper):
    """Whisper with its head: features `[..., mels, frames]`, tokens `[..., length]` -> `[..., length, vocabulary]`.

    Arguments as in `Whisper`. `encode`, `initial_state`, `prefill` and `step` generate.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.whisper import WhisperConfig, WhisperForConditionalGeneration
    >>> sizes = {"features": 8, "heads": 2, "decoder_heads": 2, "depth": 1, "decoder_depth": 1, "vocabulary": 11}
    >>> config = WhisperConfig(mels=4, max_inputs=6, max_length=9, mlp_features=16, decoder_mlp_features=16, **sizes)
    >>> model = WhisperForConditionalGeneration(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 4, 12)), jax.numpy.zeros((2, 3), int)).shape
    (2, 3, 11)
    """

    def __init__(self, config: WhisperConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = head_of(config.features, config.vocabulary, tied=config.tie_embeddings, **options)

    def output(self, hidden: jax.Array) -> jax.Array:
        """The logits of the next token, `[..., vocabulary]`."""
        return logits_of(hidden, self.embedding, self.head)


RULES = (
    Rule("encoder.conv1.weight", "first.kernel", "o i k -> k i o"),
    Rule("encoder.conv1.bias", "first.bias"),
    Rule("encoder.conv2.weight", "second.kernel", "o i k -> k i o"),
    Rule("encoder.conv2.bias", "second.bias"),
    Rule("encoder.embed_positions.weight", "input_positions"),
    *stack_rules("encoder"),
    Rule("decoder.embed_tokens.weight", "embedding.embedding"),
    Rule("decoder.embed_positions.weight", "position_embedding.embedding"),
    *stack_rules("decoder"),
)

HEADS = (
    Rule("proj_out.weight", "head.kernel", "o i -> i o"),
    Rule("proj_out.weight", "embedding.embedding", tied=True),
)

FAMILY = Family(
    config=WhisperConfig,
    models={"WhisperModel": Whisper, "WhisperForConditionalGeneration": WhisperForConditionalGeneration},
    table=Table(RULES, HEADS, prefix="model."),
)
