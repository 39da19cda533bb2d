"""What Hugging Face's models give for a case; needs torch and transformers (the extra `peers`)."""

import importlib.util
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from model_cases import Case, objective, random_tensor

OUTPUTS = (
    "loss",
    "logits",
    "last_hidden_state",
    "encoder_last_hidden_state",
    "pooler_output",
    "logits_per_image",
    "text_embeds",
    "image_embeds",
)
INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needed = pytest.mark.skipif(not INSTALLED, reason="NOT COMPARED: torch and transformers are not installed")


def run(case: Case, attention: str = "eager") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The outputs of Hugging Face's model with random weights, and the gradients of all parameters.

    Args:
        case: the case.
        attention: which of its implementations.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(case, attention)


def has_sdpa(case: Case) -> bool:
    """Whether Hugging Face's model runs over PyTorch's `scaled_dot_product_attention`; some have code of their own."""
    import transformers

    return getattr(transformers, case.settings["architectures"][0])._supports_sdpa


def model_of(case: Case, attention: str = "eager") -> Any:
    """Hugging Face's model with random weights."""
    import torch
    import transformers

    settings = {name: value for name, value in case.settings.items() if name not in ("model_type", "architectures")}
    config = transformers.AutoConfig.for_model(case.settings["model_type"], **settings)
    config._attn_implementation = attention
    config._experts_implementation = "eager"
    model = getattr(transformers, case.settings["architectures"][0])(config).eval()
    if settings.get("tie_word_embeddings") is False:
        head = model.get_output_embeddings()  # T5 ties it in any case
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        buffers = {name: model.get_buffer(name) for name in case.buffers}
        for name, one in {**dict(model.named_parameters()), **buffers}.items():
            if name not in case.computed:
                one.copy_(torch.from_numpy(random_tensor(case.tensor(name), tuple(one.shape))))
    return model


def read(case: Case, path: Any) -> None:
    """Check that transformers reads a directory, lacks nothing, needs all, and has the weights of the case.

    Raises:
        AssertionError: it does not.
    """
    import torch
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = getattr(transformers, case.settings["architectures"][0])
        model, report = kind.from_pretrained(path, output_loading_info=True)
        assert not any(report.values()), report
        for name, parameter in model_of(case).named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name


def _run(case: Case, attention: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    import torch

    model = model_of(case, attention)
    given = model(**{name: torch.from_numpy(np.asarray(one)) for name, one in case.inputs.items()})
    outputs = {}
    for name, one in given.items():
        if name in OUTPUTS:
            valid = torch.from_numpy(np.asarray(case.valid.get(name, 1)))
            outputs[name] = torch.where(valid[(..., *[None] * (one.ndim - valid.ndim))] != 0, one, 0)
    made = cotangents(outputs)
    objective(outputs, {name: torch.from_numpy(one) for name, one in made.items()}).backward()
    gradients = {case.tensor(name): one.grad.numpy() for name, one in model.named_parameters() if one.grad is not None}
    return {name: one.detach().numpy() for name, one in outputs.items()}, gradients


def cotangents(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Fixed random numbers for each output."""
    return {
        name: np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(one.shape)).astype(np.float32)
        for name, one in outputs.items()
    }


def summary(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each gradient its norm, and its dot product with fixed random numbers, which would both change with it."""
    return {
        name: np.array([np.linalg.norm(one), np.vdot(one, random_tensor("gradient of " + name, one.shape))], np.float32)
        for name, one in gradients.items()
    }
