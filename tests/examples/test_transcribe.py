"""The example of speech: when words are said, and which sounds it takes."""

import importlib.util
import wave

import numpy as np
import pytest


@pytest.fixture
def wav(tmp_path):
    """The path of a wav file of silence."""

    def written(rate=16000, seconds=1.0, channels=1):
        path = tmp_path / "sound.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((channels, 2, rate, 0, "NONE", ""))
            file.writeframes(bytes(2 * channels * int(rate * seconds)))
        return str(path)

    return written


def test_words_begin_where_the_decoder_listens(example):
    word_times = example("speech.word_times").word_times

    class Letters:
        def decode(self, tokens):
            return "".join((" on", "ly", " two", ".")[token] for token in tokens)

    weights = np.full((2, 5, 100), 1e-3)
    for row, (start, end) in enumerate([(0, 20), (20, 30), (50, 70), (70, 72), (72, 80)]):
        weights[:, row, start:end] = 1
    only, two = word_times([0, 1, 2, 3], weights, Letters(), seconds=2.0)
    assert (only.text, two.text) == ("only", "two.")
    assert only.start == 0 and 0.6 <= only.end == two.start <= 1.0 and two.end == pytest.approx(1.44)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ({"rate": 8000}, "must have 16000 samples a second; it has 8000. sox converts"),
        ({"seconds": 31}, "must be at most 30 seconds long; it is 31.0. sox cuts"),
        ({"channels": 2}, "must be mono, of 16 bits a sample; it has 2 channels"),
        (None, "the sound must be a file; there is none at"),
    ],
)
def test_other_sounds_are_refused_before_anything_is_loaded(example, wav, tmp_path, capsys, sound, message):
    path = str(tmp_path / "nothing.wav") if sound is None else wav(**sound)
    with pytest.raises(SystemExit):
        example("transcribe").main([path])
    assert message in capsys.readouterr().err


def test_another_file_is_refused(example):
    with pytest.raises(ValueError, match="must be a wav file"):
        example("published.sounds").read(b"ID3 of an mp3")


@pytest.mark.published
@pytest.mark.exhaustive
@pytest.mark.skipif(not importlib.util.find_spec("tokenizers"), reason="NOT TESTED: tokenizers not installed")
def test_prompts_are_heard_and_timed(example, tmp_path):
    try:
        figures = example("transcribe").main(["--out", str(tmp_path), "--beams", "2"])
    except ConnectionError as error:
        pytest.skip(f"NOT TESTED with speech: {error}")
    assert figures["words right"] == 1 and figures["words right, always the most common"] < 0.3
    assert figures["seconds off"] < 0.15 < 0.4 < figures["seconds off, spread evenly"]
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
