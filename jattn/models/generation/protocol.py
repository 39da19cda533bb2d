"""What a model must have so that `jattn.models.generate` can generate with it."""

from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class GenerativeModel(Protocol):
    """A language model that generates: the whole call, divided into a prompt and single tokens.

        state = model.initial_state(batch, capacity)
        logits, state = model.prefill(prompts, state)        of the token after each prompt
        logits, state = model.step(tokens, state)            of the token after these

    It is an `nnx.Module`. A state is a pytree of caches of `jattn.layers.caches`, of `jattn.layers.decoding.Memory`s
    for cross-attention, and of other arrays whose first axis is the batch. Every model of
    `jattn.models` that predicts the next token has these methods, or those of `EncoderDecoder`.

    Attributes:
        config: its configuration, with `vocabulary` and, as defaults of `generate`, `eos_token` and `pad_token`.
        longest: the largest number of tokens of a sequence; None if it is not limited.
    """

    config: Any

    @property
    def longest(self) -> int | None: ...

    def initial_state(
        self, batch: int | tuple[int, ...], capacity: int | None = None, *, cache: Any = "contiguous", dtype: Any = None
    ) -> Any:
        """The state before the first token.

        Args:
            batch: the number of sequences.
            capacity: the largest number of tokens of a sequence, new ones included.
            cache: `"contiguous"`, `"rolling"`, or a cache of `jattn.layers.caches` for every layer.
            dtype: the dtype of cached keys and values; by default the one that attention computes in.
        """
        ...

    def prefill(self, tokens: Any, state: Any, *, valid: Any = None) -> tuple[jax.Array, Any]:
        """The next tokens `[batch, new]`: logits `[batch, vocabulary]` after the last valid one, and the state then.

        Args:
            tokens: integers `[batch, new]`.
            state: the state before them.
            valid: booleans `[batch, new]`, False for padding on either side.
        """
        ...

    def step(self, tokens: Any, state: Any) -> tuple[jax.Array, Any]:
        """The next token of each sequence, `[batch]`: logits `[batch, vocabulary]`, and the state after it."""
        ...


@runtime_checkable
class EncoderDecoder(Protocol):
    """A model whose decoder generates, and attends to the output of an encoder: T5, Whisper, the Transformer.

        encoded = model.encode(inputs, attention_mask=inputs_mask)
        state = model.initial_state(batch, capacity, encoded=encoded, encoded_mask=inputs_mask)

    The keys and values of cross-attention are computed once, in `initial_state`, and kept in the state: as
    `jattn.nnx.MultiHeadAttention.initial_state(key_inputs=encoded, key_valid=...)` does. `prefill` and `step` are those
    of `GenerativeModel`, over tokens of the decoder.

    Attributes:
        config, longest: as in `GenerativeModel`; `longest` is that of the decoder. `config.decoder_start_token` is
            the first token of the decoder, which is the prompt if none is given.
    """

    config: Any

    @property
    def longest(self) -> int | None: ...

    def encode(self, inputs: Any, *, attention_mask: Any = None) -> jax.Array:
        """The output of the encoder, `[batch, source, features]`.

        Args:
            inputs: what the encoder reads: tokens `[batch, source]`, or features of sound or an image.
            attention_mask: ones and zeros `[batch, source]`, 0 for padding; None for inputs without padding.
        """
        ...

    def initial_state(
        self,
        batch: int | tuple[int, ...],
        capacity: int | None = None,
        *,
        encoded: Any,
        encoded_mask: Any = None,
        cache: Any = "contiguous",
        dtype: Any = None,
    ) -> Any:
        """The state before the first token of the decoder.

        Args:
            batch, capacity, cache, dtype: as in `GenerativeModel.initial_state`.
            encoded: the output of `encode`.
            encoded_mask: ones and zeros `[batch, source]`, 0 for padding.
        """
        ...

    def prefill(self, tokens: Any, state: Any, *, valid: Any = None) -> tuple[jax.Array, Any]:
        """As in `GenerativeModel`."""
        ...

    def step(self, tokens: Any, state: Any) -> tuple[jax.Array, Any]:
        """As in `GenerativeModel`."""
        ...
