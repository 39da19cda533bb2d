"""Rotary frequencies for longer contexts, against a definition frequency by frequency."""

import dataclasses
import math

import numpy as np
import pytest

from jattn.positions import NTK, Linear, Llama3, YaRN
from jattn.positions.scaling import rotary_frequencies

BASE, DIMS = 10000.0, 64


def plain(base=BASE, dims=DIMS):
    return [base ** (-2 * i / dims) for i in range(dims // 2)]


def same(ours, expected):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_without_scaling():
    same(rotary_frequencies(BASE, DIMS), plain())


def test_linear_divides_all():
    same(Linear(8.0).frequencies(BASE, DIMS), [f / 8 for f in plain()])


def test_ntk_keeps_the_highest_and_divides_the_lowest():
    ours = NTK(8.0).frequencies(BASE, DIMS)
    same(ours, plain(BASE * 8 ** (DIMS / (DIMS - 2))))
    np.testing.assert_allclose([ours[0], ours[-1]], [1, plain()[-1] / 8], rtol=1e-12)
    with pytest.raises(ValueError, match="more than 2"):
        NTK(2.0).frequencies(BASE, 2)


def test_yarn_as_in_the_paper():
    expected = []
    for f in plain():
        turns = 2048 / (2 * math.pi / f)
        keep = 0 if turns < 1 else 1 if turns > 32 else (turns - 1) / 31
        expected.append((1 - keep) * f / 16 + keep * f)
    yarn = YaRN(16.0, original_length=2048)
    same(yarn.frequencies(BASE, DIMS), expected)
    assert yarn.factor_on_features() == pytest.approx(0.1 * math.log(16) + 1)
    assert expected[0] == 1 and expected[-1] == pytest.approx(plain()[-1] / 16)


def test_yarn_as_in_its_code():
    def index(turns):
        return DIMS * math.log(2048 / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = math.floor(index(32)), math.ceil(index(1))
    expected = []
    for i, f in enumerate(plain()):
        inside = min(max((i - low) / (high - low), 0), 1)
        expected.append(f / 16 * inside + f * (1 - inside))
    same(YaRN(16.0, original_length=2048, ramp="index").frequencies(BASE, DIMS), expected)


def test_yarn_with_factor_1_changes_nothing():
    for ramp in ("turns", "index"):
        yarn = YaRN(1.0, original_length=2048, ramp=ramp)
        same(yarn.frequencies(BASE, DIMS), plain())
        assert yarn.factor_on_features() == 1
    assert YaRN(4.0, original_length=2048, attention_factor=1.5).factor_on_features() == 1.5


def test_llama_3_as_published():
    base, dims = 500000.0, 128
    expected = []
    for f in plain(base, dims):
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            expected.append(f)
        elif wavelength > 8192 / 1:
            expected.append(f / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * f / 8 + smooth * f)
    same(Llama3(8.0).frequencies(base, dims), expected)
    assert Llama3(8.0).factor_on_features() == 1


@pytest.mark.parametrize("scaling", [Linear(2.0), NTK(2.0), YaRN(2.0, 64), Llama3(2.0)], ids=repr)
def test_scalings_are_frozen_data(scaling):
    assert scaling == dataclasses.replace(scaling) and hash(scaling) == hash(dataclasses.replace(scaling))
    with pytest.raises(dataclasses.FrozenInstanceError):
        scaling.factor = 3.0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Linear(0), "factor"),
        (lambda: Linear("2"), "factor"),  # type: ignore[arg-type]
        (lambda: NTK(-1.0), "factor"),
        (lambda: YaRN(0.5, 64), "factor"),
        (lambda: YaRN(2.0, 0), "original_length"),
        (lambda: YaRN(2.0, 64, fast=1.0), "fast"),
        (lambda: YaRN(2.0, 64, slow=0), "slow"),
        (lambda: YaRN(2.0, 64, ramp="linear"), "ramp"),  # type: ignore[arg-type]
        (lambda: YaRN(2.0, 64, attention_factor=0), "attention_factor"),
        (lambda: Llama3(math.inf), "factor"),
        (lambda: Llama3(2.0, 4.0, 4.0), "high_frequency_factor"),
        (lambda: Llama3(2.0, original_length=-1), "original_length"),
    ],
)
def test_bad_arguments(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make()
