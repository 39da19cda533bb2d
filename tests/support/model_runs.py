"""Models of the table of cases with random weights, and how outputs are compared."""

from typing import Any

import numpy as np
from flax import nnx
from model_cases import Case, random_tensor

from jattn import models
from jattn.models.registry import family_of


def made(case: Case) -> Any:
    """The model of a case with random weights."""
    family = family_of(case.settings["model_type"])
    config = family.config.from_json(case.settings)
    model = family.models[case.settings["architectures"][0]](config, rngs=nnx.Rngs(0))
    tensors = {name: random_tensor(name, one.shape) for name, one in models.to_tensors(model).items()}
    return models.from_tensors(tensors, case.settings)


def close(got: Any, want: Any, tolerance: float, what: str, least: float = 0.0) -> None:
    """Check that the largest error is small beside the largest number."""
    assert np.shape(got) == np.shape(want), what
    error = np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), least, 1e-30)
    assert error <= tolerance, f"{what}: {error}"
