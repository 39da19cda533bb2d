"""`generate`: the arguments, their defaults and their errors."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...foundation.arguments import check_choice, check_dtype, check_flags, check_key, check_positive
from ...foundation.arrays import as_array, describe, dtype_of, is_tracing
from ...layers.caches import Contiguous, Paged, Spec
from ..layers import checked_tokens
from .beam import BeamSearch
from .config import GenerationConfig
from .loop import Memory, run
from .prompts import Prompts, in_one_array, valid_of
from .protocol import EncoderDecoder, GenerativeModel
from .rules import Rules
from .sampling import Sampling
from .states import table_of

PAGE_SIZE = 64
CACHES = ("contiguous", "rolling", "paged")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """What `generate` returns.

    Attributes:
        tokens: the new tokens, int32 `[batch, max_new_tokens]`, padded on the right.
        lengths: how many of them there are of each sequence, int32 `[batch]`; a stop token at its end is counted.
        scores: the sum of their log probabilities, float32 `[batch]`: those of the model, before `settings`,
            temperature, top-k and top-p. Of beam search, those after `settings`, their sum divided by
            length^length_penalty.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array

    def lists(self) -> list[list[int]]:
        """The new tokens of each sequence, without padding."""
        lengths = np.asarray(self.lengths)
        return [row[:length].tolist() for row, length in zip(np.asarray(self.tokens), lengths, strict=True)]


def generate(
    model: GenerativeModel | EncoderDecoder,
    tokens: Any = None,
    *,
    max_new_tokens: int,
    attention_mask: Any = None,
    inputs: Any = None,
    inputs_mask: Any = None,
    stop_tokens: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: Any = None,
    beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | str | None = None,
    settings: GenerationConfig | None = None,
    cache: str | Spec = "contiguous",
    cache_dtype: Any = None,
    capacity: int | None = None,
    callback: Callable[[np.ndarray], Any] | None = None,
    progress: bool = False,
) -> Generated:
    """Continue each prompt by up to `max_new_tokens` tokens.

        greedy      y_t = argmax p(y | y_<t, prompt)
        sampling    y_t ~ p(y | y_<t, prompt)^(1/temperature), normalized, among the `top_k` likeliest tokens, of these
                    among those that hold the mass `top_p`
        beams       the likeliest of several sequences that are extended together: `jattn.models.generation.beam`

    The prompts are one program, and all tokens after the first another, which ends when every sequence has. Both are
    compiled once for the model and the shapes. Dropout is off.

    What a checkpoint's `generation_config.json` says of tokens that must not or must come is followed, and so are its
    stop tokens and beams: see `settings`. It does not turn on sampling, which needs a `temperature` and a `key`.

    Args:
        model: a model of `jattn.models` with the head of a language model, or another with the methods of
            `GenerativeModel` or `EncoderDecoder`.
        tokens: the prompts: lists of integers of any lengths, or integers `[batch, length]`. Of an encoder-decoder,
            what its decoder begins with; by default what `settings` say, or `config.decoder_start_token`.
        max_new_tokens: how many tokens are generated for each prompt, unless a stop token comes first.
        attention_mask: ones and zeros `[batch, length]`, 0 for padding of `tokens` on either side. Padding changes
            nothing: a prompt gives what it gives alone.
        inputs: of an encoder-decoder, what its encoder reads: lists of tokens of any lengths, tokens `[batch, source]`,
            or other arrays, such as features of sound.
        inputs_mask: ones and zeros `[batch, source]`, 0 for padding of `inputs`.
        stop_tokens: tokens that end a sequence; by default those of `settings`, or `config.eos_token`. `()` for none.
        temperature: 0 chooses the most likely token. Sampling at a temperature T has this as its limit for T -> 0,
            whatever `top_k` and `top_p`.
        top_k: how many of the most likely tokens are sampled from.
        top_p: the probability mass that is sampled from, in (0, 1]: the most likely tokens that together have it.
        key: a random key, or one for each prompt, `[batch]`, for a temperature above 0. Of one key, row i gets
            `jax.random.fold_in(key, i)`. The tokens of a row depend on its own prompt and key alone.
        beams: how many sequences beam search keeps for each prompt; 1 for none. By default as `settings` say.
        length_penalty: beam search divides the sum of log probabilities by the number of new tokens to this power:
            above 0, longer sequences are favored. By default as `settings` say, or 1.
        early_stopping: beam search for a prompt is over when there are as many finished sequences as beams (True); when
            the best running one would not beat the worst of these at its present length (False); when it would not at
            any length ("never"). By default as `settings` say, or False.
        settings: which tokens may come, and defaults of arguments; by default `model.generation`, which
            `from_directory` reads from `generation_config.json`. `GenerationConfig()` for none.
        cache: `"contiguous"`; `"rolling"`, where layers with a window keep only what it sees; `"paged"`, where short
            prompts leave room for long ones; or a cache of `jattn.layers.caches`.
        cache_dtype: the dtype of cached keys and values; by default the one that attention computes in.
        capacity: the places of a contiguous cache for each sequence, by default as many as are needed. The same
            capacity for prompts of different lengths spares compiling the loop again.
        callback: called after each token with those of all sequences, a NumPy array `[batch]` of int32, -1 for
            sequences that had ended. Each token is then a call of its own.
        progress: whether to show a progress bar by tqdm; each token is then a call of its own.

    Returns:
        The new tokens, their number and their scores.

    Raises:
        ValueError: a prompt is empty, or has a token out of the vocabulary; prompt and new tokens are more than the
            positions of the model, or than the cache has room for; an option is out of its range; options exclude one
            another, such as `beams` and `callback`; `settings` ask for what is not computed here; it is called
            inside of `jax.jit`.

    >>> from flax import nnx
    >>> from jattn.models import generate
    >>> from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM
    >>> config = GPT2Config(vocabulary=11, features=8, depth=1, heads=2, max_length=9)
    >>> model = GPT2ForCausalLM(config, rngs=nnx.Rngs(0))
    >>> found = generate(model, [[1, 2, 3, 4], [5]], max_new_tokens=5)
    >>> found.tokens.shape, found.lengths.tolist()
    ((2, 5), [5, 5])
    """
    _check_model(model)
    settings = _settings(model, settings)
    beams = settings.beams if beams is None else beams
    length_penalty = settings.length_penalty if length_penalty is None else length_penalty
    early_stopping = settings.early_stopping if early_stopping is None else early_stopping
    check_positive(max_new_tokens=max_new_tokens, beams=beams)
    check_flags(progress=progress)
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback` must be a function of tokens, [batch]; got {describe(callback)}.")
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise ValueError(f'`early_stopping` must be False, True or "never"; got {early_stopping!r}.')
    _check_number("length_penalty", length_penalty, -np.inf)
    config, source = model.config, _source(model, inputs, inputs_mask)
    if tokens is None:
        tokens = _start_tokens(config, source, settings)
    prompts = Prompts.of(tokens, attention_mask, config.vocabulary)
    stop = _stop_tokens(stop_tokens, config, settings)
    named = (token for token in (settings.pad_token, config.pad_token) if token is not None)
    pad = next((token for token in named if token in range(config.vocabulary)), (*stop, 0)[0])
    rules = Rules.of(settings, prompts.on_the_right, stop, max_new_tokens, config.vocabulary)
    if beams == 1:
        choices = _choices(temperature, top_k, top_p, key, len(prompts.tokens))
        how: Any = Sampling(max_new_tokens, stop, pad, *choices, rules)
    else:
        others = {"temperature": temperature or None, "top_k": top_k, "top_p": top_p, "key": key, "callback": callback}
        for name, value in others.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` cannot be given with `beams` above 1: beam search samples nothing, and knows its tokens "
                    f"only at the end; got {describe(value)} and {beams} beams."
                )
        how = BeamSearch(
            max_new_tokens,
            stop,
            pad,
            beams,
            _float32(length_penalty),
            jnp.bool(early_stopping is True),
            jnp.bool(early_stopping == "never"),
            rules,
        )
        if beams * max(2, 1 + len(stop)) > config.vocabulary:
            raise ValueError(
                f"`beams` must be at most {config.vocabulary // max(2, 1 + len(stop))} for a vocabulary of "
                f"{config.vocabulary} and {len(stop)} stop tokens; got {beams}."
            )
    memory, table = _memory(model, prompts, max_new_tokens, beams, cache, cache_dtype, capacity)
    return Generated(*run(model, how, prompts, source, table, memory, callback, progress))


def _check_model(model: Any) -> None:
    if is_tracing():
        raise ValueError(
            "`generate` must be called outside of `jax.jit`, `jax.grad` and `jax.vmap`: it compiles itself."
        )
    if not isinstance(model, nnx.Module) or not isinstance(model, GenerativeModel):
        raise ValueError(
            "`model` must be an `nnx.Module` with `initial_state`, `prefill`, `step`, `config` and `longest`, as "
            f"`jattn.models.generation.GenerativeModel` has them; got a {type(model).__name__}."
        )


def _settings(model: Any, settings: Any) -> GenerationConfig:
    """What is to be followed.

    Raises:
        ValueError: it is no `GenerationConfig`, or asks for what is not computed here.
    """
    if settings is None:
        settings = getattr(model, "generation", None) or GenerationConfig()
    if not isinstance(settings, GenerationConfig):
        raise ValueError(f"`settings` must be a `jattn.models.GenerationConfig`; got {describe(settings)}.")
    if settings.refused:
        names = ", ".join(f"{name} = {value}" for name, value in settings.refused)
        without = ", ".join(repr(name) for name, _ in settings.refused)
        raise ValueError(
            f"`settings` of the checkpoint ask for {names}, which `generate` does not compute. To generate without: "
            f"`settings=model.generation.without({without})`."
        )
    return settings


def _source(model: Any, inputs: Any, inputs_mask: Any) -> tuple[Any, Any] | None:
    """What the encoder reads, if there is one.

    Raises:
        ValueError: there are inputs without an encoder, or the reverse; an example is empty, or has a token out of the
            vocabulary; the mask has another shape, or other numbers than 0 and 1.
    """
    if isinstance(model, EncoderDecoder):
        if inputs is None:
            raise ValueError("`inputs` must be given: what the encoder of this model reads; got None.")
        inputs, inputs_mask = in_one_array(inputs, inputs_mask, "inputs", "inputs_mask")
        inputs = as_array(inputs)
        if dtype_of(inputs) is None or inputs.ndim < 2 or 0 in inputs.shape[:2]:
            raise ValueError(f"`inputs` must be at least one example [batch, source, ...]; got {describe(inputs)}.")
        if inputs.ndim == 2 and jnp.issubdtype(dtype_of(inputs), jnp.integer):
            inputs = checked_tokens("inputs", inputs, model.config.vocabulary)
        # Of tokens, the mask is theirs; of features of sound or an image, one for each vector of the encoder.
        shape = tuple(inputs.shape) if inputs.ndim == 2 else (inputs.shape[0], *np.shape(inputs_mask)[1:2])
        inputs_mask = valid_of(inputs_mask, shape, "inputs_mask", "inputs")
        if inputs_mask is not None and not inputs_mask.any(-1).all():
            raise ValueError("`inputs` must have at least one token or frame in each example; some have none.")
        if inputs_mask is not None and inputs_mask.all():
            inputs_mask = None
        return jnp.asarray(inputs), None if inputs_mask is None else jnp.asarray(inputs_mask)
    if inputs is not None or inputs_mask is not None:
        raise ValueError(
            f"`inputs` and `inputs_mask` are for a model with an encoder, which a {type(model).__name__} has not; give "
            "prompts as `tokens`."
        )
    return None


def _start_tokens(config: Any, source: tuple[Any, Any] | None, settings: GenerationConfig) -> np.ndarray:
    """The prompt of each example of an encoder-decoder.

    Raises:
        ValueError: nothing names one, or not all of it.
    """
    start = settings.start_tokens or (getattr(config, "decoder_start_token", None),)
    if source is None or start[0] is None:
        raise ValueError(
            "`tokens` must be the prompts, integers [batch, length] or a list of lists; got None, and "
            f"{type(config).__name__} names no `decoder_start_token`."
        )
    if None in start:
        raise ValueError(
            "`tokens` must be what the decoder begins with, such as the start token, a language, a task and the token "
            f"for no times: generation_config.json says {list(start)}, and languages are not detected."
        )
    return np.tile(np.array(start, np.int32), (len(source[0]), 1))


def _stop_tokens(stop_tokens: Any, config: Any, settings: GenerationConfig) -> tuple[int, ...]:
    """Tokens that end a sequence.

    Raises:
        ValueError: they are not tokens.
    """
    default = config.eos_token if settings.stop_tokens is None else settings.stop_tokens
    given = default if stop_tokens is None else stop_tokens
    if dtype_of(given) is not None and np.ndim(given) == 1:
        given = list(np.asarray(given))
    given = () if given is None else given if isinstance(given, Sequence) else (given,)
    if stop_tokens is None:  # a published default may be beyond a small vocabulary, and then never occurs
        given = [token for token in given if token in range(config.vocabulary)]
    for token in given:
        if not isinstance(token, int | np.integer) or isinstance(token, bool) or not 0 <= token < config.vocabulary:
            raise ValueError(
                f"`stop_tokens` must be tokens in [0, {config.vocabulary}), the vocabulary of the model; got "
                f"{describe(token)}."
            )
    return tuple(dict.fromkeys(int(token) for token in given))


def _choices(temperature: Any, top_k: Any, top_p: Any, key: Any, batch: int) -> tuple[Any, Any, Any, Any]:
    """Temperature, top_k, top_p, and a key for each row; nothing for the most likely token.

    Raises:
        ValueError: one is out of its range; there is no key to sample with.
    """
    _check_number("temperature", temperature, 0)
    if top_p is not None:
        _check_number("top_p", top_p, 0, 1)
        if top_p == 0:
            raise ValueError("`top_p` must be above 0, which keeps no token; got 0. The most likely one: `top_k=1`.")
    if top_k is not None:
        check_positive(top_k=top_k)
    if temperature == 0:
        return None, None, None, None
    if key is None:
        raise ValueError(
            "`key` must be a random key, such as `jax.random.key(0)`, to sample at a temperature above 0; got None."
        )
    dtype = dtype_of(key)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == (batch,):
        keys = key
    else:
        check_key("key", key)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(batch))
    return _float32(temperature), top_k, None if top_p is None else jnp.float32(top_p), keys


def _float32(value: float) -> jax.Array:
    """The nearest finite float32."""
    most = np.finfo(np.float32).max
    return jnp.float32(np.clip(float(value), -most, most))


def _check_number(name: str, value: Any, least: float, most: float = np.inf) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or not least <= value <= most:
        wanted = "a finite number" if least < 0 else f"from {least} to {most}" if most < np.inf else f"{least} or more"
        raise ValueError(f"`{name}` must be {wanted}; got {value!r}.")


def _memory(
    model: Any, prompts: Prompts, new: int, beams: int, cache: Any, dtype: Any, capacity: int | None
) -> tuple[Memory, np.ndarray | None]:
    """Where keys and values are kept, and the pages of each sequence if there are pages.

    Raises:
        ValueError: there is no such cache, or no room for all tokens.
    """
    if dtype is not None:
        check_dtype("cache_dtype", dtype)
    needed = int(prompts.lengths.max()) + new
    if model.longest is not None and needed > model.longest:
        raise ValueError(
            f"`max_new_tokens` must be at most {model.longest - int(prompts.lengths.max())} for prompts of up to "
            f"{prompts.lengths.max()} tokens and {model.longest} positions of the model; got {new}."
        )
    if capacity is not None:
        check_positive(capacity=capacity)
        if isinstance(cache, Spec):
            raise ValueError(f"`capacity` is that of a cache given by name; got {capacity} and {cache}.")
    if not isinstance(cache, Spec):
        check_choice("cache", cache, CACHES)
    paged, table = cache if isinstance(cache, Paged) else None, None
    tokens = np.repeat(prompts.lengths + new, beams)
    if cache == "paged":
        pages = int((-(-tokens // PAGE_SIZE)).sum())
        paged = Paged(pages, PAGE_SIZE, -(-(capacity or needed) // PAGE_SIZE))
    if paged is not None:
        if needed > paged.slots * paged.page_size or -(-tokens // paged.page_size).sum() > paged.pages:
            raise ValueError(
                f"`cache` must have pages for {needed} tokens of a sequence and {tokens.sum()} of all, whole pages for "
                f"each; got {paged}."
            )
        table = table_of(tokens, paged.page_size, paged.pages, paged.slots)
    places = cache.length if isinstance(cache, Contiguous) else capacity
    if places is not None and places < needed:
        name = "cache" if isinstance(cache, Contiguous) else "capacity"
        raise ValueError(
            f"`{name}` must have places for {needed} tokens, those of the longest prompt and {new} new ones; got "
            f"{places}."
        )
    return Memory(capacity or needed, paged or cache, dtype), table
