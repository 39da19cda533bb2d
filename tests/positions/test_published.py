"""Rotations of published models: numbers computed by the model code of Hugging Face transformers 5.24.0.

Frequencies are those of `modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope_type]` for 16 dims; turned features those of the
module named beside them, of token 4 and head 1 of X, in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.positions import (
    DynamicNTK,
    LongRoPE,
    Proportional,
    YaRN,
    rotary,
    rotary_2d,
    rotary_frequencies,
    rotary_sections,
    xpos,
)

SHORT = (1.0, 1.05, 1.1, 1.2, 1.4, 1.7, 2.1, 2.6)
LONG = (1.0, 1.3, 1.9, 3.0, 6.0, 12.0, 24.0, 32.0)
YARN = (1, 0.3162278, 0.08125, 0.01976424, 0.004375, 0.0007905695, 0.00025, 7.905695e-05)
UNROUNDED = (1, 0.3162278, 0.08539864, 0.01912678, 0.003556971, 0.0007905695, 0.00025, 7.905695e-05)
PLAIN = (1, 0.3162278, 0.1, 0.03162278, 0.01, 0.003162278, 0.001, 0.0003162278)

FREQUENCIES = {
    "dynamic, 3000 tokens of 1024": (
        DynamicNTK(4.0, 1024, length=3000),
        (1, 0.2320863, 0.05386402, 0.0125011, 0.002901333, 0.0006733595, 0.0001562775, 3.626985e-05),
        1.0,
    ),
    "dynamic, 300 tokens of 1024": (DynamicNTK(4.0, 1024, length=300), PLAIN, 1.0),
    "yarn": (YaRN(4.0, 1024, ramp="index"), YARN, 1.138629436),
    "yarn, truncate false": (YaRN(4.0, 1024, ramp="index", rounded=False), UNROUNDED, 1.138629436),
    "yarn, mscale 1 and 0.8": (YaRN(4.0, 1024, ramp="index", mscale=1.0, mscale_all_dim=0.8), YARN, 1.02495796),
    "yarn, mscale 1 and 0": (YaRN(4.0, 1024, ramp="index", mscale=1.0, mscale_all_dim=0.0), YARN, 1.138629436),
    "yarn, attention factor": (YaRN(4.0, 1024, ramp="index", attention_factor=1.5), YARN, 1.5),
    "longrope, 1024 tokens of 1024": (
        LongRoPE(SHORT, LONG, 1024, 32.0, length=1024),
        (1, 0.3011693, 0.09090909, 0.02635231, 0.007142857, 0.001860163, 0.0004761905, 0.0001216261),
        1.224744871,
    ),
    "longrope, 1025 tokens of 1024": (
        LongRoPE(SHORT, LONG, 1024, 32.0, length=1025),
        (1, 0.2432521, 0.05263158, 0.01054092, 0.001666667, 0.0002635232, 4.166667e-05, 9.882118e-06),
        1.224744871,
    ),
    "proportional": (Proportional(0.4, factor=2.0), (0.5, 0.1581139, 0.05, 0, 0, 0, 0, 0), 1.0),
}

X = jnp.asarray(np.sin(np.arange(6 * 2 * 16) * 0.37).reshape(6, 2, 16), jnp.float32)
AT = np.array([[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [5, 5, 5]])  # time, height, width
ALTERNATING = rotary_frequencies(10000.0, 16).reshape(-1, 2).T

TURNED = {
    "qwen2_vl, mrope_section 2, 3, 3": (
        lambda x: rotary_sections(x, AT, (2, 3, 3)),
        "0.324104 -0.247677 -0.646855 -0.875857 -0.994589 -0.994753 -0.868643 -0.628236 "
        "-0.0574958 -0.0165503 0.295461 0.664255 0.901559 0.993295 0.94084 0.757615",
    ),
    "qwen3_vl, mrope_section 4, 2, 2, interleaved": (
        lambda x: rotary_sections(x, AT, (4, 2, 2), interleaved=True),
        "0.324104 -0.230249 -0.646855 -0.854417 -0.994589 -0.994753 -0.867702 -0.627996 "
        "-0.0574958 -0.092753 0.295461 0.691615 0.901559 0.993295 0.941709 0.757814",
    ),
    "glm4v, mrope_section 2, 3, 3": (
        lambda x: rotary_sections(x, AT, (2, 3, 3), pairs="interleaved"),
        "0.270884 -0.0233233 -0.287962 -0.96976 -0.760523 -1.16272 -0.82535 -0.681284 "
        "-0.304955 0.0552061 0.41353 0.720913 0.919269 1.00141 0.942096 0.758609",
    ),
    "qwen2_vl, vision": (
        lambda x: rotary_2d(x, AT[:, 1:], layout="joint"),
        "0.223495 -0.247925 -0.583508 -0.833558 -0.431399 -1.16733 -0.885437 -0.629271 "
        "0.241659 0.0122835 0.406493 0.716618 -1.27118 0.783266 0.925053 0.756755",
    ),
    "pixtral, vision": (
        lambda x: rotary_2d(x, AT[:, 1:], layout="joint", frequencies=ALTERNATING),
        "0.223495 -0.247925 -0.583508 -0.833558 -1.3321 -1.04965 -0.872704 -0.628236 "
        "0.241659 0.0122835 0.406493 0.716618 0.165923 0.935094 0.937075 0.757615",
    ),
    "sam2_video": (
        lambda x: rotary_2d(x, AT[:, 1:], pairs="interleaved"),
        "0.165985 0.215339 -0.398478 -0.929823 -0.956397 -1.00778 -0.865502 -0.629489 "
        "0.0706868 -0.301742 0.267047 0.787026 0.901095 1.01779 0.941058 0.759896",
    ),
    "gemma4, vision": (
        lambda x: rotary_2d(x, AT[:, 1:]),
        "0.835062 -0.039373 -0.557813 -0.830866 0.521547 -1.01654 -0.878091 -0.62942 "
        "-0.711287 -0.138511 0.399148 0.716766 -0.659619 0.991818 0.950748 0.759448",
    ),
}


@pytest.mark.parametrize("name", FREQUENCIES)
def test_frequencies_and_attention_factor(name):
    scaling, frequencies, factor = FREQUENCIES[name]
    np.testing.assert_allclose(scaling.frequencies(10000.0, 16), frequencies, rtol=6e-7)
    np.testing.assert_allclose(scaling.factor_on_features(), factor, rtol=1e-8)
    assert hash(scaling) == hash(scaling) and len(scaling.frequencies(10000.0, 16)) == 8


@pytest.mark.parametrize("name", TURNED)
def test_turned_features(name):
    turn, features = TURNED[name]
    np.testing.assert_allclose(turn(X)[4, 1], np.array(features.split(), float), atol=6e-6)


def test_equal_coordinates_are_one_position():
    text = np.repeat(np.array([0, 1, 7, 100, 3, 9])[:, None], 3, 1)
    scaling = LongRoPE((1.0, 2.0, 3.0, 4.0), (1.0,) * 4, 64, 2.0)
    for interleaved in (False, True):
        ours = rotary_sections(X, text, (1, 1, 2), dims=8, scaling=scaling, interleaved=interleaved)
        np.testing.assert_allclose(ours, rotary(X, text[:, 0], dims=8, scaling=scaling), atol=1e-6)


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_xpos_by_complex_numbers(pairs):
    """Σ_i Re(q_i k̄_i exp(i (n - m) θ_i)) ζ_i^((n - m) / scale_base), whatever the center; and gradients flow."""
    at, there, dim = np.array([70, 5, 40]), np.array([3, 4, 40]), 8
    q, k = (np.random.default_rng(i).normal(size=(3, 1, dim)).astype(np.float32) for i in range(2))

    def pairs_of(x):
        return x[..., :4] + 1j * x[..., 4:] if pairs == "half" else x[..., ::2] + 1j * x[..., 1::2]

    zeta = (np.arange(0, dim, 2) / dim + 0.4) / 1.4
    distance = (at - there)[:, None, None]
    turns = np.exp(1j * distance * 10000.0 ** (-np.arange(0, dim, 2) / dim)) * zeta ** (distance / 64)
    expected = (pairs_of(q) * pairs_of(k).conj() * turns).real.sum(-1)

    def dots(q, k, center):
        options: dict[str, Any] = {"scale_base": 64.0, "pairs": pairs, "center": center}
        return (xpos(q, at, role="query", **options) * xpos(k, there, role="key", **options)).sum(-1)

    np.testing.assert_allclose(dots(q, k, 0), expected, atol=1e-5)
    np.testing.assert_allclose(dots(q, k, 35), expected, atol=1e-5)
    assert np.isfinite(jax.grad(lambda q: dots(q, k, 0).sum())(jnp.asarray(q))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynamicNTK(0.5, 64), "`factor` must be"),
        (lambda: DynamicNTK(2.0, 64, length=0), "`length` must be"),
        (lambda: DynamicNTK(2.0, 64, 128).frequencies(1e4, 2), "more than 2"),
        (lambda: LongRoPE(1.0, (1.0,), 64, 2.0), "`short` must be a sequence"),  # type: ignore[arg-type]
        (lambda: LongRoPE((1.0,), (0.0,), 64, 2.0), r"`long\[0\]` must be"),
        (lambda: LongRoPE((1.0,), (1.0,), 64, 2.0).frequencies(1e4, 8), "`short` must have 4 numbers"),
        (lambda: Proportional(1.5), "`proportion` must be at most 1"),
        (lambda: YaRN(2.0, 64, rounded=1), "`rounded` must be"),  # type: ignore[arg-type]
        (lambda: YaRN(2.0, 64, attention_factor=1.0, mscale=1.0), "exclude each other"),
        (lambda: rotary_sections(X, AT, (2, 3, 4)), "`sections` must add up to the 8 pairs"),
        (lambda: rotary_sections(X, AT, (4.0, 4.0)), "`sections` must be a tuple"),  # type: ignore[arg-type]
        (lambda: rotary_sections(X, AT[:, :2], (2, 3, 3)), r"`positions` must be an array \[..., length, 3\]"),
        (lambda: rotary_2d(X, AT[:, 1:], layout="halves"), "`layout` must be"),  # type: ignore[arg-type]
        (lambda: rotary_2d(X, AT[:, 1:], frequencies=np.ones(4)), r"`frequencies` must be an array \(2, 4\)"),
        (lambda: xpos(X, np.arange(6), role="value"), "`role` must be"),  # type: ignore[arg-type]
        (lambda: xpos(X, np.arange(6), role="key", scale_base=0.0), "`scale_base` must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
