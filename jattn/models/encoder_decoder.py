"""What encoder-decoder models share: blocks, stacks, the whole call, generation over caches.

    encoded = encode(inputs)                          once
    y       = block(y, encoded)                       for each block of the decoder: causal self-attention,
                                                      attention to `encoded`, feed-forward layer
    logits  = head(norm(y))                           hidden states if there is no head

To generate, `initial_state` projects `encoded` to keys and values once for each block. A state is a tuple of pairs, for
each block the cache of self-attention and the memory of cross-attention. All its arrays have the batch axes first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arrays import as_array, describe, dtype_of
from ..foundation.shapes import check_shapes
from ..masks import from_attention_mask
from ..masks.base import restricted
from ..ops.attention.call import renamed
from ..positions import from_attention_mask as positions_of
from .blocks import through
from .config import Config
from .decoder import DecoderBlock, cache_specs, last_of
from .layers import as_valid, checked_next, checked_tokens, placed

State = tuple[tuple[Any, Any], ...]

Attend = Callable[[jax.Array], tuple[jax.Array, Any]]


class ResidualBlock(DecoderBlock):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)); or with the norm after each sum.

    Args:
        attention: a `jattn.nnx.MultiHeadAttention`.
        mlp: a feed-forward layer.
        norm: makes a norm.
        dropout: on what is added.
        pre_norm: whether norms come before their layer (Xiong et al. 2020, arXiv:2002.04745), or after the sum, as in
            Vaswani et al. 2017.
    """

    def __init__(self, attention: Any, mlp: Any, norm: Callable[[], Any], dropout: Any, *, pre_norm: bool = True):
        self.attention, self.attention_norm = attention, norm()
        self.mlp, self.mlp_norm = mlp, norm()
        self.dropout = dropout
        self.pre_norm = pre_norm

    def around(self, x, attend):
        x, state = self.residual(self.attention_norm, x, attend)
        return self.residual(self.mlp_norm, x, lambda y: (self.mlp(y), None))[0], state

    def residual(self, norm: Any, x: jax.Array, function: Attend) -> tuple[jax.Array, Any]:
        """x plus the function of it, with a norm; and what else the function returns."""
        y, state = function(norm(x) if self.pre_norm else x)
        x = x + self.dropout(y)
        return (x if self.pre_norm else norm(x)), state


class CrossBlock(ResidualBlock):
    """An encoder's block with attention to the encoded inputs between self-attention and feed-forward layer.

    Args:
        attention: causal self-attention.
        cross: attention to the encoded inputs.
        mlp, norm, dropout, pre_norm: as in `ResidualBlock`.
    """

    def __init__(
        self, attention: Any, cross: Any, mlp: Any, norm: Callable[[], Any], dropout: Any, *, pre_norm: bool = True
    ):
        super().__init__(attention, mlp, norm, dropout, pre_norm=pre_norm)
        self.cross, self.cross_norm = cross, norm()

    def around_both(self, x: jax.Array, attend: Attend, attend_encoded: Attend) -> tuple[jax.Array, tuple[Any, Any]]:
        """The block around both attentions, which return their output and a state to pass on."""
        x, state = self.residual(self.attention_norm, x, attend)
        x, memory = self.residual(self.cross_norm, x, attend_encoded)
        return self.residual(self.mlp_norm, x, lambda y: (self.mlp(y), None))[0], (state, memory)

    def __call__(self, x: jax.Array, encoded: jax.Array, *, mask: Any = None, encoded_mask: Any = None) -> jax.Array:
        """`[..., length, features]` -> `[..., length, features]`.

        Args:
            x: `[..., length, features]`.
            encoded: `[..., inputs, features]`.
            mask: restricts self-attention.
            encoded_mask: restricts attention to `encoded`.
        """
        return self.around_both(
            x,
            lambda y: (self.attention(y, mask=mask), None),
            lambda y: (self.cross(y, encoded, mask=encoded_mask), None),
        )[0]

    def prefill(self, x: jax.Array, state: tuple[Any, Any], *, valid: Any = None, mask: Any = None):
        """The next tokens, and the state after them, as in `MultiHeadAttention.prefill`."""
        own, memory = state
        return self.around_both(
            x,
            lambda y: self.attention.prefill(y, own, valid=valid, mask=mask),
            lambda y: self.cross.prefill(y, memory, valid=valid),
        )


class Stack(nnx.Module):
    """Blocks, and the norm after the last one.

    Args:
        blocks: modules.
        norm: the norm; None if the last block ends with one.
        dropout: after the norm.
    """

    def __init__(self, blocks: Sequence[Any], norm: Any = None, dropout: Any = None):
        self.blocks = nnx.List(blocks)
        self.norm, self.dropout = norm, dropout

    def __call__(self, x: jax.Array, *inputs: Any, config: Config, **options: Any) -> jax.Array:
        """The output after all blocks, which all get the same other arguments; `config` as in `through`."""
        return self.end(through(self.blocks, x, *inputs, config=config, **options))

    def end(self, x: jax.Array) -> jax.Array:
        """What follows the last block."""
        x = x if self.norm is None else self.norm(x)
        return x if self.dropout is None else self.dropout(x)


class EncoderDecoder(nnx.Module):
    """An encoder, and a decoder of tokens that attends to what it encodes. Subclasses make the layers.

    Attributes:
        config: the configuration.
        encoder: a `Stack` of `ResidualBlock`s.
        decoder: a `Stack` of `CrossBlock`s.
        longest: the largest number of tokens of the decoder; None if positions are not limited.
    """

    config: Config
    encoder: Any
    decoder: Any
    longest: int | None = None

    def embed_inputs(self, inputs: Any, positions: Any = None) -> jax.Array:
        """The input of the encoder's first block, `[..., inputs, features]`; positions are counted from 0 if None."""
        raise NotImplementedError

    def encoded_shape(self, inputs: Any) -> tuple[int, ...]:
        """The shape `[..., inputs]` of what is encoded; that of the inputs, if these are tokens."""
        return tuple(getattr(as_array(inputs), "shape", ()))

    def embed(self, tokens: jax.Array, positions: Any) -> jax.Array:
        """The input of the decoder's first block, `[..., length, features]`."""
        raise NotImplementedError

    def output(self, hidden: jax.Array) -> jax.Array:
        """What the model returns for hidden states of the decoder: here themselves."""
        return hidden

    def encode(self, inputs: Any, *, attention_mask: Any = None, mask: Any = None) -> jax.Array:
        """The encoder's hidden states, `[..., inputs, features]`.

        Args:
            inputs: what the encoder takes, such as tokens `[..., inputs]`.
            attention_mask: ones and zeros `[..., inputs]`, 0 for padding: it is not attended to, and does not
                count in positions.
            mask: a mask of `jattn.masks` on the encoder's self-attention.

        Raises:
            ValueError: inputs are not what the model takes.
        """
        positions = None
        if attention_mask is not None:
            _check_mask(attention_mask, self.encoded_shape(inputs))
            mask = restricted(mask, from_attention_mask(attention_mask))
            positions = positions_of(attention_mask)
        x = self.embed_inputs(inputs, positions)
        return self.encoder(x, config=self.config, mask=mask)

    def decode(
        self,
        tokens: Any,
        encoded: jax.Array,
        *,
        attention_mask: Any = None,
        decoder_attention_mask: Any = None,
        mask: Any = None,
        positions: Any = None,
    ) -> jax.Array:
        """Hidden states of the decoder for all tokens, or logits of a model with a head; arguments as in the call.

        `encoded` is what `encode` returned.
        """
        tokens = self._checked(tokens)
        self._check_encoded(encoded)
        mask, positions = placed(
            tokens, decoder_attention_mask, mask, positions, self.longest, "decoder_attention_mask"
        )
        x = self.embed(tokens, np.arange(tokens.shape[-1]) if positions is None else positions)
        if attention_mask is not None:
            _check_mask(attention_mask, encoded.shape[:-1])
        encoded_mask = None if attention_mask is None else from_attention_mask(attention_mask)
        return self.output(self.decoder(x, encoded, config=self.config, mask=mask, encoded_mask=encoded_mask))

    def __call__(
        self,
        inputs: Any,
        tokens: Any,
        *,
        attention_mask: Any = None,
        decoder_attention_mask: Any = None,
        mask: Any = None,
        positions: Any = None,
    ) -> jax.Array:
        """Hidden states of the decoder, or logits of a model with a head.

        Args:
            inputs: what the encoder takes, as in `encode`.
            tokens: integers `[..., length]`, the inputs of the decoder: what it is to predict, one place to the right.
                `jattn.models.shifted_right` makes them.
            attention_mask: ones and zeros `[..., inputs]`, 0 for padding.
            decoder_attention_mask: the same for `tokens`. Padding does not count in positions.
            mask: a mask of `jattn.masks` on the decoder's self-attention, combined with its own by `&`.
            positions: integers `[length]` or `[..., length]` of the tokens, where the model has positions; by default
                tokens are counted from 0 in each sequence.

        Returns:
            `[..., length, features]`, or `[..., length, vocabulary]`.

        Raises:
            ValueError: as in `encode`; tokens are not integers, or known to be out of the vocabulary; there are more
                than positions.
        """
        return self.decode(
            tokens,
            self.encode(inputs, attention_mask=attention_mask),
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            mask=mask,
            positions=positions,
        )

    def initial_state(
        self,
        batch: int | tuple[int, ...],
        capacity: int | None = None,
        *,
        encoded: jax.Array,
        encoded_mask: Any = None,
        cache: Any = "contiguous",
        dtype: Any = None,
    ) -> State:
        """The state that `prefill` and `step` start from: keys and values of the encoded inputs, and empty caches.

        Args:
            batch: the batch axes, or the size of one.
            capacity: the largest number of tokens of a sequence.
            encoded: what `encode` returned, `[batch..., inputs, features]`. For several sequences of each, such as the
                beams of a search, repeat it along the batch.
            encoded_mask: ones and zeros `[batch..., inputs]`: the `attention_mask` given to `encode`.
            cache, dtype: as in `jattn.models.decoder.Decoder.initial_state`.

        Raises:
            ValueError: `capacity` is missing, or larger than the positions of the model; `encoded` has other features,
                or another batch.
        """
        batch = (batch,) if isinstance(batch, int) else tuple(batch)
        self._check_encoded(encoded)
        if encoded.shape[:-2] != batch:
            raise ValueError(f"`encoded` must be {[*batch, 'inputs', 'features']}; got shape {encoded.shape}.")
        valid = as_valid(encoded_mask, "encoded_mask")
        specs = cache_specs(cache, capacity, [block.window for block in self.decoder.blocks], self.longest)
        return tuple(
            (
                block.attention.initial_state(batch, cache=spec, dtype=dtype),
                block.cross.initial_state(key_inputs=encoded, key_valid=valid, dtype=dtype),
            )
            for block, spec in zip(self.decoder.blocks, specs, strict=True)
        )

    def prefill(
        self, tokens: Any, state: State, *, valid: Any = None, mask: Any = None, every: bool = False
    ) -> tuple[jax.Array, State]:
        """The next tokens of each sequence: the output at the last, and the state after them.

        However a sequence is divided, outputs are those of a call on the whole. Arguments and errors as in
        `jattn.models.decoder.Decoder.prefill`.
        """
        tokens = self._checked(tokens)
        self._check_state(state)
        valid = as_valid(valid)
        x = self.embed(tokens, state[0][0].positions(tokens.shape[-1], valid))
        after = []
        with renamed(inputs="tokens"):
            for block, one in zip(self.decoder.blocks, state, strict=True):
                x, one = block.prefill(x, one, valid=valid, mask=mask)
                after.append(one)
        x = self.decoder.end(x if every else last_of(x, valid))
        return self.output(x), tuple(after)

    def step(self, tokens: Any, state: State, *, valid: Any = None, mask: Any = None) -> tuple[jax.Array, State]:
        """The next token of each sequence, `[...]` -> `[..., vocabulary]`, and the state after it.

        Arguments as in `prefill`; `valid [...]` says which sequences advance.
        """
        tokens = checked_next(tokens, self.config.vocabulary)  # pyright: ignore
        valid = as_valid(valid)
        return self.prefill(tokens, state, valid=None if valid is None else jnp.asarray(valid)[..., None], mask=mask)

    def _checked(self, tokens: Any) -> jax.Array:
        return checked_tokens("tokens", tokens, self.config.vocabulary, self.longest)  # pyright: ignore

    def _check_encoded(self, encoded: Any) -> None:
        check_shapes({"features": self.config.features}, encoded=(encoded, "... inputs features"))  # pyright: ignore

    def _check_state(self, state: Any) -> None:
        """Check that a state has a cache and a memory for each block.

        Raises:
            ValueError: it has not.
        """
        blocks = len(self.decoder.blocks)
        pairs = isinstance(state, tuple) and all(isinstance(one, tuple) and len(one) == 2 for one in state)
        if not pairs or len(state) != blocks:
            raise ValueError(
                f"`state` must be what `initial_state`, `prefill` or `step` gave, a cache and a memory for each of "
                f"{blocks} blocks; got {describe(state)}."
            )


def _check_mask(attention_mask: Any, shape: tuple[int, ...]) -> None:
    """Check the shape of a padding mask of encoded inputs.

    Raises:
        ValueError: it is another.
    """
    found = as_array(attention_mask)
    if dtype_of(found) is None or tuple(found.shape) != shape:
        raise ValueError(
            f"`attention_mask` must be ones and zeros of shape {shape}, one for each vector that is encoded; got "
            f"{describe(attention_mask)}."
        )
