"""How a conversation is written for models that were trained to answer: special tokens around what each side says."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Special(NamedTuple):
    """A token that is none of the text."""

    name: str


class Template(NamedTuple):
    """The parts of one turn: what the user says at `{text}`, and all that is before the answer.

    Attributes:
        first: before everything.
        system: what the model is told to be, at `{text}`.
        user: a turn of the user, up to the answer.
        ended: after an answer, without the token that stopped it.
        stop: the token that ends an answer.
    """

    first: tuple[Special | str, ...]
    system: tuple[Special | str, ...]
    user: tuple[Special | str, ...]
    ended: tuple[Special | str, ...]
    stop: Special


TEMPLATES = {
    "chatml": Template(  # SmolLM2, Qwen
        (),
        (Special("<|im_start|>"), "system\n{text}", Special("<|im_end|>"), "\n"),
        (Special("<|im_start|>"), "user\n{text}", Special("<|im_end|>"), "\n", Special("<|im_start|>"), "assistant\n"),
        ("\n",),
        Special("<|im_end|>"),
    ),
    "llama3": Template(
        (Special("<|begin_of_text|>"),),
        (
            *(Special("<|start_header_id|>"), "system", Special("<|end_header_id|>"), "\n\n{text}"),
            Special("<|eot_id|>"),
        ),
        (
            *(
                Special("<|start_header_id|>"),
                "user",
                Special("<|end_header_id|>"),
                "\n\n{text}",
                Special("<|eot_id|>"),
            ),
            *(Special("<|start_header_id|>"), "assistant", Special("<|end_header_id|>"), "\n\n"),
        ),
        (),
        Special("<|eot_id|>"),
    ),
    "gemma": Template(
        (Special("<bos>"),),
        (),
        (
            Special("<start_of_turn>"),
            "user\n{text}",
            Special("<end_of_turn>"),
            "\n",
            Special("<start_of_turn>"),
            "model\n",
        ),
        ("\n",),
        Special("<end_of_turn>"),
    ),
    "mistral": Template((Special("<s>"),), (), (Special("[INST]"), " {text}", Special("[/INST]")), (), Special("</s>")),
}


def chosen(tokenizer: Any, name: str | None) -> Template:
    """A template by name, or the first whose special tokens the tokenizer has.

    Raises:
        ValueError: the tokenizer lacks tokens of the template, or of all templates.
    """
    lacking = {
        one: [part.name for part in specials(template) if tokenizer.token_to_id(part.name) is None]
        for one, template in TEMPLATES.items()
    }
    found = [one for one in ([name] if name else TEMPLATES) if not lacking[one]]
    if found:
        return TEMPLATES[found[0]]
    asked = (
        f"the template {name!r} needs {', '.join(lacking[name])}" if name else f"templates are {', '.join(TEMPLATES)}"
    )
    raise ValueError(
        f"the tokenizer must have the special tokens of a template; {asked}. A model that was not trained to answer "
        "has none: continue texts by `jattn.models.generate`."
    )


def specials(template: Template) -> list[Special]:
    """The special tokens of a template."""
    parts = (*template.first, *template.system, *template.user, *template.ended, template.stop)
    return [part for part in parts if isinstance(part, Special)]


def encode(tokenizer: Any, parts: Sequence[Special | str], text: str = "") -> list[int]:
    """The tokens of parts of a template, with what the user says in place of `{text}`."""
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, Special):
            tokens.append(tokenizer.token_to_id(part.name))
        else:
            tokens += tokenizer.encode(part.replace("{text}", text), add_special_tokens=False).ids
    return tokens
