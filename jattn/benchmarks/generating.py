"""The rows on whole models that generate, beside Hugging Face's on PyTorch: random weights, greedy."""

import functools
import importlib
import importlib.util
from typing import Any

import jax
import numpy as np
from flax import nnx

from ..models.generation import generate
from ..models.registry import family_of
from . import peers
from .cases import Bar, Speed
from .sides import Run, Shape, Side

GPT2: dict[str, Any] = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""The sizes of the smallest GPT-2, and of a Llama of 135 million parameters."""


def prompts(settings: dict[str, Any], shape: Shape) -> np.ndarray:
    """Random tokens `[batch, length]`."""
    return np.random.default_rng(0).integers(0, settings.get("vocab_size", 50257), (shape.batch, shape.length))


def model_of(settings: dict[str, Any]) -> Any:
    """The model of `jattn.models` that a `config.json` describes, with random weights."""
    family = family_of(settings["model_type"])
    config = family.config.from_json(settings)
    return family.models[settings["architectures"][0]](config, rngs=nnx.Rngs(0))


def ours(settings: dict[str, Any], new: int) -> Side:
    """`jattn.models.generate`, `new` tokens."""

    def build(shape: Shape) -> Run:
        tokens = prompts(settings, shape)
        run = functools.partial(generate, model_of(settings), tokens, max_new_tokens=new, stop_tokens=())
        return lambda: jax.block_until_ready(run())

    return Side("jattn", build)


def peer(settings: dict[str, Any]) -> tuple[Any, Any]:
    """PyTorch, and Hugging Face's model with random weights, which attends by PyTorch's fused attention if it can."""
    torch, transformers = peers.load_torch(), importlib.import_module("transformers")
    given = {key: value for key, value in settings.items() if key not in ("model_type", "architectures")}
    config = transformers.AutoConfig.for_model(settings["model_type"], **given)
    if settings["model_type"] != "longformer":
        config._attn_implementation = "sdpa"
    return torch, getattr(transformers, settings["architectures"][0])(config).eval()


def missing_peers() -> str | None:
    """Why there is nothing to compare with, or None."""
    absent = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    return f"{' and '.join(absent)} not installed" if absent else None


def hugging_face(settings: dict[str, Any], new: int) -> Side:
    """Hugging Face's `generate` on PyTorch's fused attention."""

    def build(shape: Shape) -> Run:
        torch, model = peer(settings)
        tokens = torch.from_numpy(prompts(settings, shape))
        lengths = {"max_new_tokens": new, "min_new_tokens": new}

        def run() -> None:
            with torch.no_grad():
                model.generate(
                    tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0, **lengths
                )

        return run

    return Side("Hugging Face", build, missing=missing_peers)


def generating(length: int = 1023, new: int = 64) -> tuple[Speed, ...]:
    """The rows for a CPU.

    Args:
        length: tokens of a long prompt, and one more is generated.
        new: tokens generated after a short prompt.
    """

    def row(name: str, what: str, settings: dict[str, Any], shape: Shape, count: int, bar: float) -> Speed:
        return Speed(name, what, shape, ours(settings, count), hugging_face(settings, count), Bar(bar), rounds=3)

    small = functools.partial(Shape, "GPT-2 small", q_heads=12, kv_heads=12, dim=64)
    llama = functools.partial(Shape, "Llama 135M", q_heads=9, kv_heads=3, dim=64)
    short = min(length, 32)
    return (
        row("gpt2-prefill", "GPT-2 small, a prompt and one token", GPT2, small(length), 1, 0.9),
        row("gpt2-decode", f"GPT-2 small, {new} tokens", GPT2, small(short), new, 1.2),
        row("llama-decode-1", f"Llama 135M, {new} tokens", LLAMA, llama(short), new, 1.0),
        row("llama-decode-8", f"Llama 135M, {new} tokens, 8 prompts", LLAMA, llama(short, batch=8), new, 1.0),
    )
