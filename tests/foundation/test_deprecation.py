"""Deprecated names work and warn, and are removed in the announced version."""

import re
import tomllib
import types
from pathlib import Path

import jax.numpy as jnp
import pytest

import jattn
from jattn.foundation.deprecation import DEPRECATIONS, deprecated, renamed

ROOT = Path(__file__).parents[2]


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def test_a_function_warns_its_caller():
    @deprecated("`new`", removed_in="99.0")
    def old(x, *, y):
        "Doc."
        return x + y

    with pytest.warns(DeprecationWarning, match=r"old` is deprecated .* removed in jattn 99\.0: use `new`") as caught:
        assert old(1, y=2) == 3
    assert caught[0].filename == __file__
    assert (old.__name__, old.__doc__) == ("old", "Doc.")


def test_a_module_finds_old_names():
    module = types.ModuleType("somewhere")
    module.__getattr__ = renamed("somewhere", {"Past": "jattn.masks.Causal"}, removed_in="99.0")  # type: ignore
    with pytest.warns(DeprecationWarning, match=r"`somewhere.Past` .* use `jattn.masks.Causal`") as caught:
        assert module.Past is jattn.masks.Causal
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="module 'somewhere' has no attribute 'Other'"):
        module.Other  # noqa: B018  (the look-up is what is tested)


def test_the_old_name_of_tiled():
    with pytest.warns(DeprecationWarning, match=r"use `jattn.implementations.Tiled`"):
        assert jattn.implementations.Chunked is jattn.implementations.Tiled
    q = jnp.ones((3, 1, 2))
    with pytest.warns(DeprecationWarning, match=r"'chunked'` is deprecated .* use `'tiled'`"):
        assert jattn.attention(q, q, q, implementation="chunked").shape == q.shape


def test_none_is_kept_past_its_time():
    now = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    late = [one for one in DEPRECATIONS if version(one.removed_in) <= version(now)]
    assert not late, f"jattn is {now}: remove {late}"
