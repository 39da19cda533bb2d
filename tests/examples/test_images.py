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
    "match_images": ("matches.png",),
    "caption": ("caption.png",),
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


def test_held_out_captions_have_pairs_that_are_not_learned(examples):
    script = examples("match_images")
    pairs = [{frozenset((one.first, one.second)) for one in captions} for captions in (script.LEARNED, script.HELD_OUT)]
    assert [len(one) for one in pairs] == [35, 10] and not pairs[0] & pairs[1]
    assert [len(script.LEARNED), len(script.HELD_OUT)] == [140, 40]
    tokens = script.as_tokens([script.Caption(3, True, 7), script.Caption(9, False, 0)])
    assert [[script.WORDS[i] for i in row] for row in tokens] == [
        ["three", "left", "of", "seven", "<end>"],
        ["nine", "above", "of", "zero", "<end>"],
    ]


def test_images_show_their_captions(examples, digits):
    """With digits that are blots of different ink, the first is left of the second, or above it."""
    script = examples("match_images")
    blots = digits.Digits((1 + np.arange(10))[:, None, None] * np.ones((8, 8), int), np.arange(10))
    images = script.draw(script.HELD_OUT, blots, np.random.default_rng(0))[..., 0] * 16
    for caption, image in zip(script.HELD_OUT, images, strict=True):
        first, second = (np.argwhere(image == 1 + digit).mean(0) for digit in (caption.first, caption.second))
        down, right = second - first
        assert (right if caption.left else down) >= 8 > abs(down if caption.left else right), str(caption)
        assert (image > 0).sum() == 2 * 64


def test_captions_name_digits_row_by_row(examples, digits):
    script = examples("caption")
    blots = digits.Digits((1 + np.arange(10))[:, None, None] * np.ones((8, 8), int), np.arange(10))
    images, words, corners = script.draw(100, blots, np.random.default_rng(0))
    cells = images[..., 0].reshape(100, 3, 10, 3, 10).max((2, 4)).reshape(100, 9) * 16
    assert (cells[words[:, 2] == script.END] > 0).any(0).all()  # two digits are anywhere, not in the upper rows only
    for image, said, at in zip(cells, words, corners, strict=True):
        shown = image[image > 0] - 1
        assert 2 <= len(shown) <= 4
        np.testing.assert_array_equal(said, [*shown, *[script.END] * (5 - len(shown))])
        assert ((at[:, 0] >= 0) == (said[:4] < 10)).all()


def test_measures_of_captions(examples):
    script = examples("caption")
    end = script.END
    words = np.array([[1, 2, end, end, end], [3, 4, 5, 6, end]])
    assert script.right(words, words) == script.same(words, words) == 1
    longer = np.array([[1, 2, end, 7, 8], [3, 4, 5, 7, end]])  # what follows the first <end> does not count
    assert script.right(longer, words) == 7 / 8 and script.same(longer, words) == 1 / 2
    np.testing.assert_array_equal(script.frequent(np.array([[1, 2], [1, 3], [4, 3]])), [[1, 3]])


def test_attention_on_a_digit(examples):
    """Even attention falls on a digit by its area, and on it alone if the weights are there."""
    script = examples("caption")
    corners = np.array([[[0, 0], [11, 20], [-1, -1], [-1, -1]]])
    even = np.full((1, 5, 64), 1 / 64)
    np.testing.assert_allclose(script.on_digit(even, corners)[0, :2], (8 / 30) ** 2)
    inside = np.zeros((1, 5, 64))
    inside[:, :, 0] = 1  # the first place, 3.75 pixels wide
    np.testing.assert_allclose(script.on_digit(inside, corners)[0, :2], [1, 0])
