"""`GenerationConfig`: how a checkpoint wants its tokens to be chosen, as `generation_config.json` says it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ...foundation.arguments import check_counts, check_positive
from ...foundation.arrays import describe

NAMES: Mapping[str, str] = {
    "suppress_tokens": "suppressed",
    "begin_suppress_tokens": "suppressed_at_first",
    "bad_words_ids": "bad_words",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "repetition_penalty": "repetition_penalty",
    "min_length": "min_length",
    "min_new_tokens": "min_new_tokens",
    "forced_bos_token_id": "forced_first",
    "forced_eos_token_id": "forced_last",
    "renormalize_logits": "renormalize",
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "eos_token_id": "stop_tokens",
    "pad_token_id": "pad_token",
}
"""Fields by the keys of `generation_config.json`."""

REFUSED: Mapping[str, tuple] = {
    "constraints": (),
    "diversity_penalty": (0, 0.0),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1, 1.0),
    "max_time": (),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0, 0.0),
    "remove_invalid_values": (),
    "sequence_bias": (),
    "stop_strings": (),
    "token_healing": (),
    "watermarking_config": (),
    "compression_ratio_threshold": (),  # of Whisper, for long sounds and failed attempts
    "logprob_threshold": (),
    "no_speech_threshold": (),
    "return_timestamps": (),
    "return_token_timestamps": (),
}
"""Keys whose effect is not computed here, and the values, beside null and false, that have none."""

STARTS = (
    "decoder_start_token_id",
    "forced_decoder_ids",
    "lang_to_id",
    "language",
    "no_timestamps_token_id",
    "task",
    "task_to_id",
)
"""Keys that enter `start_tokens`."""

WITHOUT_EFFECT = frozenset(
    (
        *STARTS,
        "alignment_heads",  # facts about Whisper
        "is_multilingual",
        "max_initial_timestamp_index",
        "prev_sot_token_id",
        "do_sample",  # what `generate` takes as arguments
        "epsilon_cutoff",
        "eta_cutoff",
        "max_length",
        "max_new_tokens",
        "min_p",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "typical_p",
        "_from_model_config",  # where it comes from, what to return, how to run
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "chat_format",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "max_window_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    )
)
"""Keys that do not change what greedy or beam search finds, or that enter `start_tokens`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Which tokens may come, and the defaults of `generate`: what a checkpoint's `generation_config.json` says.

    `from_directory` reads it into `model.generation`, and `generate` follows it unless it is given another.
    `settings=GenerationConfig()` follows none, `settings=dataclasses.replace(model.generation, ...)` changes some.

    It restricts tokens and their scores x (logits; log probabilities in beam search) in this order, at every step. Each
    sequence counts for itself, with its prompt and without padding; Hugging Face counts padding on the left too.

    Sampling stays with the arguments of `generate`: `do_sample`, `temperature`, `top_k`, `top_p` and their like in the
    file are not followed, and neither are its `max_length` and `max_new_tokens`.

    Args:
        repetition_penalty: r, for tokens that the sequence has: x / r if x > 0, else x r (Keskar et al. 2019,
            arXiv:1909.05858).
        no_repeat_ngram: n, for no n-gram of tokens twice in a sequence; 0 for any (Paulus et al. 2017,
            arXiv:1705.04304).
        bad_words: sequences of tokens that must not come. A stop token alone is not forbidden by this.
        min_length: no stop token before a sequence has so many tokens, those of the prompt included.
        min_new_tokens: no stop token among the first so many new ones.
        forced_first: the token after a prompt of one token, which is where a decoder begins.
        forced_last: the token with which a sequence that has not ended by itself ends.
        suppressed: tokens that never come.
        suppressed_at_first: tokens that do not come first; the first after `forced_first` if there is one.
        renormalize: whether beam search normalizes log probabilities after all of this.
        beams, length_penalty, early_stopping: the defaults of `generate`.
        stop_tokens: as in `generate`; None for those of the model's configuration.
        pad_token: what follows the end of a sequence; None for that of the model's configuration.
        start_tokens: what the decoder of an encoder-decoder begins with; None for the configuration's
            `decoder_start_token`. None in the place of a token that nothing names, such as Whisper's for the language.
        refused: settings that `generate` cannot follow, as JSON by name. It raises unless they are taken out.
        others: settings that change nothing here, as JSON by name: kept for `to_directory`.

    Raises:
        ValueError: a number is out of range.

    >>> settings = GenerationConfig.from_json({"suppress_tokens": [1, 2], "repetition_penalty": 1.2, "top_k": 50})
    >>> settings.suppressed, settings.repetition_penalty, settings.no_repeat_ngram
    ((1, 2), 1.2, 0)
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_first: int | None = None
    forced_last: int | None = None
    suppressed: tuple[int, ...] = ()
    suppressed_at_first: tuple[int, ...] = ()
    renormalize: bool = False
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop_tokens: tuple[int, ...] | None = None
    pad_token: int | None = None
    start_tokens: tuple[int | None, ...] | None = None
    refused: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for name in ("bad_words", "suppressed", "suppressed_at_first", "stop_tokens", "start_tokens"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _tuples(name, value))
        if self.repetition_penalty is True or not isinstance(self.repetition_penalty, int | float):
            raise ValueError(f"`repetition_penalty` must be a number above 0; got {describe(self.repetition_penalty)}.")
        if self.repetition_penalty <= 0:
            raise ValueError(f"`repetition_penalty` must be a number above 0; got {self.repetition_penalty}.")
        check_counts(
            no_repeat_ngram=self.no_repeat_ngram, min_length=self.min_length, min_new_tokens=self.min_new_tokens
        )
        check_positive(beams=self.beams)
        if not all(isinstance(word, tuple) and word for word in self.bad_words):
            raise ValueError(f"`bad_words` must be sequences of at least one token; got {self.bad_words}.")

    def without(self, *names: str) -> "GenerationConfig":
        """The same without settings in `refused`, which are then not followed.

        Raises:
            ValueError: there is none of this name.

        >>> GenerationConfig.from_json({"guidance_scale": 3.0}).without("guidance_scale").refused
        ()
        """
        unknown = set(names) - {name for name, _ in self.refused}
        if unknown:
            raise ValueError(f"`names` must be among {[name for name, _ in self.refused]}; got {sorted(unknown)}.")
        return dataclasses.replace(self, refused=tuple(one for one in self.refused if one[0] not in names))

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "GenerationConfig":
        """What a `generation_config.json` says; null is as if a key were not there.

        Args:
            settings: the parsed JSON.

        Raises:
            ValueError: it is no object; a value is out of range, or of another type.
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"generation_config.json must be a JSON object; got {describe(settings)}.")
        given = {key: value for key, value in settings.items() if value is not None}
        fields = {NAMES[key]: value for key, value in given.items() if key in NAMES}
        if isinstance(fields.get("stop_tokens"), int):
            fields["stop_tokens"] = (fields["stop_tokens"],)
        refused = {
            key: value
            for key, value in given.items()
            if key not in NAMES
            and key not in WITHOUT_EFFECT
            and value is not False
            and not any(value == neutral for neutral in REFUSED.get(key, ()))
        }
        start, language = _start_tokens(given)
        refused |= language
        others = {key: value for key, value in given.items() if key not in NAMES and key not in refused}
        return cls(
            **fields,
            start_tokens=start,
            refused=tuple((key, json.dumps(value)) for key, value in refused.items()),
            others=tuple((key, json.dumps(value)) for key, value in others.items()),
        )

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> "GenerationConfig":
        """That of a checkpoint: `generation_config.json`, or what older ones say in `config.json`.

        Args:
            config: the parsed `config.json`.
            own: the parsed `generation_config.json`; None if there is none.

        Raises:
            ValueError: as in `from_json`.
        """
        if own is None:
            keys = (*NAMES, *REFUSED, "decoder_start_token_id", "forced_decoder_ids")
            return cls.from_json({key: config[key] for key in keys if key in config})
        if isinstance(own, Mapping) and own.get("forced_decoder_ids") is None and config.get("forced_decoder_ids"):
            own = {**own, "forced_decoder_ids": config["forced_decoder_ids"]}
        return cls.from_json(own)

    def to_json(self) -> dict[str, Any]:
        """The settings as `generation_config.json` has them."""
        defaults = GenerationConfig()
        keys = {name: key for key, name in NAMES.items()}
        own = {keys[name]: getattr(self, name) for name in keys if getattr(self, name) != getattr(defaults, name)}
        kept = {key: json.loads(value) for key, value in (*self.refused, *self.others)}
        if _start_tokens(kept)[0] != self.start_tokens:
            kept = {key: value for key, value in kept.items() if key not in STARTS}
            first, *rest = self.start_tokens or (None,)
            own |= {
                "decoder_start_token_id": first,
                "forced_decoder_ids": [[1 + at, one] for at, one in enumerate(rest)],
            }
        return json.loads(json.dumps({**kept, **own}))


def _tuples(name: str, value: Any) -> tuple:
    """Lists as tuples, one in another or not, of integers.

    Raises:
        ValueError: there is something else.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"`{name}` must be a sequence of tokens; got {describe(value)}.")
    found = tuple(_tuples(name, one) if isinstance(one, list | tuple) else one for one in value)
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int | tuple | (type(None) if name == "start_tokens" else int)):
            raise ValueError(f"`{name}` must hold tokens, which are integers; got {describe(one)}.")
    return found


def _start_tokens(given: Mapping[str, Any]) -> tuple[tuple[int | None, ...] | None, dict[str, Any]]:
    """The first tokens of a decoder, and the settings that should name one of them but do not.

    Of Whisper these are the start token, those of the language and the task (`language` and `task`, or the older
    `forced_decoder_ids`) and, unless times are asked for, the one that says so.
    """
    if "decoder_start_token_id" not in given:
        return None, {}
    start: list[int | None] = [given["decoder_start_token_id"]]
    languages, tasks, unknown = given.get("lang_to_id", {}), given.get("task_to_id", {}), {}
    if "language" in given or "task" in given:
        language = str(given.get("language")).lower()
        found = languages.get(language, languages.get(f"<|{language}|>"))
        if "language" in given and found is None:
            unknown["language"] = given["language"]
        if languages:
            start.append(found)
        if "task" in given:
            if given["task"] in tasks:
                start.append(tasks[given["task"]])
            else:
                unknown["task"] = given["task"]
    else:
        forced = given.get("forced_decoder_ids", ())
        if [place for place, _ in forced] != list(range(1, len(forced) + 1)):
            unknown["forced_decoder_ids"] = forced
        start += [token for _, token in forced]
        if languages and len(start) == 1:
            start.append(None)  # it is to be detected
    last = given.get("no_timestamps_token_id")
    if last is not None and start[-1] != last and not given.get("return_timestamps"):
        start.append(last)
    return tuple(start), unknown
