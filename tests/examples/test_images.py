"""The examples about images: what they are measured on, what they are compared with, and a short form of each."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def examples():
    """Imports a module as `python examples/NAME.py` does."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def digits(examples):
    return examples("images.digits")


SHORT = {
    "generate_images": ("heads.png", "samples.png"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SHORT)
def test_reduced_form(examples, name, tmp_path, capsys):
    """A tiny model learns something, and everything is written. What the whole ones reach is in examples/README.md."""
    script, training, losses = examples(name), examples("images.training"), []
    train = training.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", lambda *given, **more: losses.extend(train(*given, **more)))
        figures = script.main(["--steps=30", "--batch=16", "--features=16", f"--out={tmp_path}"])
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(np.isfinite(list(figures.values())))
    assert json.loads((tmp_path / "result.json").read_text()).items() <= figures.items()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == list(SHORT[name])
    assert "100%" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHORT)
def test_bad_flags(examples, name, capsys):
    with pytest.raises(SystemExit):
        examples(name).main(["--steps=0"])
    assert "argument --steps: must be an integer of at least 1: 0" in capsys.readouterr().err


def test_held_out_digits_are_not_learned(digits):
    known, held_out = digits.load()
    assert len(known.labels) == 1500 and len(held_out.labels) == 297
    images = {one.tobytes() for one in known.images}
    assert not [one for one in held_out.images if one.tobytes() in images]
    for one in (known, held_out):
        assert set(one.labels) == set(range(10)) and one.images.min() == 0 and one.images.max() == digits.LEVELS - 1


def test_digits_are_drawn_by_their_labels(digits):
    every = digits.Digits(np.arange(30)[:, None, None] * np.ones((8, 8), int), np.arange(30) % 10)
    labels = np.array([[3, 7], [7, 0]])
    drawn = every.draw(np.random.default_rng(0), labels)
    np.testing.assert_array_equal(drawn[..., 0, 0] % 10, labels)


def test_baselines_of_pixels(examples, digits):
    """Counting is exact where the context decides, and no better than the shades' entropy where it does not."""
    script = examples("generate_images")
    labels = np.arange(2000) % 10
    places = np.broadcast_to(np.arange(64).reshape(8, 8) % 16, (2000, 8, 8))
    known = digits.Digits((places + labels[:, None, None]) % 16, labels)
    bits = script.baselines(known, known)
    assert bits["given place and label"] < 0.2
    assert bits["given the previous pixel"] < 0.1
    assert bits["histogram of all pixels"] == pytest.approx(4, abs=0.02)
    assert bits["given the place"] == pytest.approx(np.log2(10), abs=0.05)


def test_weights_by_distance(examples):
    """A head that looks at the pixel above has all its weight one row above."""
    above = np.eye(64, 63, -8)
    found = examples("generate_images").by_distance(above)
    assert found.shape == (8, 15)
    assert found[6, 7] == 1 and found.sum() == 1
