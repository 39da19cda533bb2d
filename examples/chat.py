"""Chat with a model of the Llama family, from a directory as Hugging Face writes it.

    pip install -e '.[examples,models]' tokenizers             # in a clone of the repository
    python examples/chat.py ~/models/SmolLM2-1.7B-Instruct     # config.json, safetensors and tokenizer.json
    pip install gguf && python examples/chat.py                # SmolLM2-135M-Instruct; downloads 93 MB
    python examples/chat.py --say "My cat is called Pixel." --say "What is my cat called?"

Text appears as it is generated. The cache of keys and values is kept between turns, so that a turn reads what is new
and nothing twice. Empty input ends the chat.

With `--say` the turns are given, and the last answer is drawn: `memory.png` in `--out` shows where a head looks that
reads what the answer repeats. Also compared are the time to the first token of that answer, and the time if the whole
conversation is read again. With `--capitals` the model is asked for the capitals of 20 countries.

Measured of SmolLM2-135M: 0.85 of the capitals are right, where the same answer for all has 0.05; in the third turn of a
conversation of 154 tokens the first token comes after 0.06 seconds, and after 0.16 if all is read again.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from chatting.conversation import Conversation
from chatting.templates import TEMPLATES, Template, chosen, encode
from published import language, packages
from shared.flags import at_least, positive

import jattn
from jattn import models

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the model of the package was trained with."""
COLUMNS = 100
"""Letters of a line in the picture."""
CAPITALS = {
    **{"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo"},
    **{"Russia": "Moscow", "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon"},
    **{"Austria": "Vienna", "Poland": "Warsaw", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm"},
    **{"Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Iran": "Tehran", "Canada": "Ottawa"},
}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the chat. Returns what was measured of a given conversation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, help="of a model; by default SmolLM2 from a package")
    parser.add_argument("--say", action="append", metavar="TEXT", default=[], help="a turn, instead of asking for it")
    parser.add_argument("--system", default=SYSTEM, help="what the model is told to be; '' for nothing")
    parser.add_argument("--template", choices=TEMPLATES, help="by default the one that the tokenizer has tokens for")
    parser.add_argument("--temperature", type=at_least(0), default=0.0, help="0 for the most likely token")
    parser.add_argument(
        "--top-p", type=at_least(0.001, 1), default=0.95, help="the probability mass that is sampled from"
    )
    parser.add_argument("--capacity", type=positive, default=1024, help="tokens of the whole conversation")
    parser.add_argument("--longest", type=positive, default=200, help="tokens of an answer")
    parser.add_argument("--capitals", action="store_true", help="ask for the capitals of countries, and count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chat"), help="folder for pictures")
    given = parser.parse_args(arguments)
    try:
        model, tokenizer = load(given.directory)
        template = chosen(tokenizer, given.template)
        options = {"temperature": given.temperature, "top_p": given.top_p, "seed": given.seed}
        stop = [tokenizer.token_to_id(template.stop.name)]
        conversation = Conversation(model, given.capacity, stop, **options)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    beginning = encode(tokenizer, template.first)
    if given.system:
        beginning += encode(tokenizer, template.system, given.system)
    figures = share_of_capitals(model, tokenizer, template, beginning) if given.capitals else {}
    turns = given.say or (() if given.capitals else iter(lambda: input("> "), ""))
    answer: list[int] = []
    waited = 0.0
    try:
        for text in turns:
            if given.say:
                print(f"> {text}")
            before = encode(tokenizer, template.ended) if conversation.tokens else beginning
            turn = [*before, *encode(tokenizer, template.user, text)]
            answer, waited = say(conversation, tokenizer, turn, given.longest)
    except (EOFError, KeyboardInterrupt):
        print()
    except ValueError as error:
        parser.error(str(error))
    if given.say:
        before = conversation.tokens[: len(conversation.tokens) - len(answer) - 1]
        figures["tokens before the last answer"] = len(before)
        figures["seconds to read what is new"] = waited
        for _ in range(2):  # the first time compiles
            whole = Conversation(model, given.capacity, stop, **options)
            began = time.perf_counter()
            next(whole.answer(before, given.longest), None)
            figures["seconds to read all of them"] = time.perf_counter() - began
        draw(model, tokenizer, conversation.tokens, len(answer), given.out)
    for name, figure in figures.items():
        print(f"{name:40}{figure:.3g}")
    return figures


def load(directory: Path | None) -> tuple[Any, Any]:
    """A model and its tokenizer, from a directory, or SmolLM2 from its package.

    Raises:
        ValueError: a package is not installed; the directory is not one of such a model.
    """
    needed = ("tokenizers", "gguf") if directory is None else ("tokenizers",)
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"a package is not installed: pip install {' '.join(missing)}")
    if directory is None:
        with tempfile.TemporaryDirectory() as folder:
            return language.smollm2(packages.opened(packages.SMOLLM2), Path(folder))
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{directory} must have a tokenizer.json beside the model, as Hugging Face writes it.")
    return models.from_directory(directory), Tokenizer.from_file(str(file))


def say(conversation: Conversation, tokenizer: Any, turn: Sequence[int], longest: int) -> tuple[list[int], float]:
    """Give the tokens of a turn, and print the answer as it is generated: its tokens, and the seconds to the first."""
    answer: list[int] = []
    printed, waited, began = 0, 0.0, time.perf_counter()
    for token in conversation.answer(turn, longest):
        waited = waited or time.perf_counter() - began
        answer.append(token)
        whole = tokenizer.decode(answer).rstrip("\ufffd")  # of a letter that is not complete
        sys.stdout.write(whole[printed:])
        sys.stdout.flush()
        printed = len(whole)
    print()
    return answer, waited


def share_of_capitals(model: Any, tokenizer: Any, template: Template, beginning: Sequence[int]) -> dict[str, float]:
    """The share of capitals that answers name, and of the baseline that always names the same."""
    prompts = [
        [*beginning, *encode(tokenizer, template.user, f"What is the capital of {country}?")] for country in CAPITALS
    ]
    stop = tokenizer.token_to_id(template.stop.name)
    found = models.generate(model, prompts, max_new_tokens=12, stop_tokens=stop, progress=True)
    right = [city in tokenizer.decode(answer) for city, answer in zip(CAPITALS.values(), found.lists(), strict=True)]
    return {"capitals, always the same": 1 / len(CAPITALS), "capitals": float(np.mean(right))}


def draw(model: Any, tokenizer: Any, conversation: Sequence[int], count: int, folder: Path) -> None:
    """The conversation, with the weights of a head that reads what the answer repeats: a rare word, most surely.

    Args:
        model, tokenizer: the model.
        conversation: its tokens; the last `count + 1` are the answer and the token that stops it.
        count: tokens of the last answer.
        folder: the picture is written to it.
    """
    tokens = np.array(conversation[:-1])
    first = len(tokens) - count
    with jattn.record(queries=range(first - 1, len(tokens) - 1)) as seen:  # those that write the answer
        model(tokens[None])
    weights = np.stack([np.asarray(one)[0] for one in seen.values()])  # [layers, heads, answer, tokens]
    repeated = (tokens == tokens[first:, None]) & (np.arange(len(tokens)) < first - 16)
    rarity = np.log(len(tokens) / np.array([(tokens == token).sum() for token in tokens[first:]]))
    onto = (weights * repeated).sum(-1) * rarity
    layer, head, place = np.unravel_index(onto.argmax(), onto.shape)
    figure = plt.figure(figsize=(9, 3))
    axes = figure.add_axes((0.01, 0, 0.98, 0.9))
    column, row = 0, 0
    for index in range(first + place + 1):
        token = int(tokens[index])
        text = tokenizer.decode([token], skip_special_tokens=False)
        if column and (column + len(text) > COLUMNS or token == tokens[0]):  # a turn begins with the same token
            column, row = 0, row + 1
        weight = float(weights[layer, head, place, index])
        box = {"facecolor": (1.0, 1 - 0.5 * weight, 1 - weight), "edgecolor": "none", "pad": 0.8}
        axes.text(column, -row, text.replace("\n", "↵"), family="monospace", fontsize=10.5, bbox=box)
        column += len(text)
    written = tokenizer.decode([int(tokens[first + place])]).strip()
    axes.set(
        xlim=(0, COLUMNS), ylim=(-row - 0.5, 1), title=f"Where block {layer}, head {head} looks to write {written!r}"
    )
    axes.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "memory.png", dpi=80)
    plt.close(figure)
    print(f"picture: {folder / 'memory.png'}")


if __name__ == "__main__":
    main()
