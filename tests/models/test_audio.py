"""Log-mel features against a float64 definition, and against Hugging Face's extractor where it is installed."""

import model_peers
import numpy as np
import pytest

from jattn.models.audio import log_mel, mel_filters


def sound(length, seed=0):
    """A tone, noise, and a pause: from loud to the floor."""
    noise = np.random.default_rng(seed).standard_normal(length)
    at = np.arange(length) / 16000
    one = 0.3 * np.sin(2 * np.pi * (300 + 2000 * at) * at) + 0.01 * noise
    one[length // 3 : length // 2] = 0
    return one.astype(np.float32)


def slow_log_mel(samples, mels):
    """The definition, frame by frame and band by band, with edges from a search on the mel scale."""

    def mel(frequency):
        return frequency * 3 / 200 if frequency < 1000 else 15 + 27 * np.log(frequency / 1000) / np.log(6.4)

    grid = np.linspace(0, 8000, 400001)
    scale = np.array([mel(one) for one in grid])
    edges = np.interp(np.linspace(0, mel(8000.0), mels + 2), scale, grid)
    mirrored = np.concatenate([samples[200:0:-1], samples, samples[-2:-202:-1]]).astype(np.float64)
    hann = np.sin(np.pi * np.arange(400) / 400) ** 2
    found = np.zeros((mels, len(samples) // 160))
    for frame in range(found.shape[1]):
        power = np.abs(np.fft.fft(mirrored[160 * frame : 160 * frame + 400] * hann)[:201]) ** 2
        for band in range(mels):
            low, middle, high = edges[band : band + 3]
            rise = np.interp(40.0 * np.arange(201), [low, middle, high], [0, 1, 0], left=0, right=0)
            found[band, frame] = np.log10(max((power * rise).sum() * 2 / (high - low), 1e-10))
    return (np.maximum(found, found.max() - 8) + 4) / 4


def test_features_are_their_definition():
    """Also of a list of sounds of several lengths, each with its own maximum, padded with silence."""
    sounds = [sound(1300), 0.01 * sound(900, 1)]
    want = [slow_log_mel(np.pad(one, (0, 1600 - len(one))), 20) for one in sounds]
    np.testing.assert_allclose(log_mel(sounds, 16000, mels=20, seconds=0.1), want, atol=1e-5)


def test_sounds_without_padding():
    want = slow_log_mel(sound(1001), 20)
    assert want.shape == (20, 6)
    np.testing.assert_allclose(log_mel(sound(1001), 16000, mels=20, seconds=None), want, atol=1e-5)


def test_silence_is_the_floor():
    assert np.array_equal(np.unique(log_mel(np.zeros(1000, np.float32), 16000, mels=20, seconds=0.1)), [-1.5])


@pytest.mark.parametrize(
    ("samples", "rate", "options", "match"),
    [
        (sound(500), 8000, {}, r"`rate` must be 16000 samples a second; got 8000\. Resample first"),
        (np.zeros(500, np.int16), 16000, {}, "16-bit integers divided by 32768"),
        (np.zeros((500, 2)), 16000, {}, r"one channel; got shape \(500, 2\).*samples.mean\(-1\)"),
        (sound(500), 16000, {"seconds": 0.03}, "at most 480 samples, 0.03 seconds; got 500"),
        (sound(200), 16000, {"seconds": None}, "more than 200 samples without padding"),
        (np.full(500, np.nan), 16000, {}, "finite"),
        (sound(500), 16000, {"seconds": -1.0}, "`seconds` must be None or a duration"),
        (sound(500), 16000, {"mels": 0}, "`mels`"),
    ],
)
def test_what_is_no_sound_is_an_error(samples, rate, options, match):
    with pytest.raises(ValueError, match=match):
        log_mel(samples, rate, **options)


@model_peers.needed
@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_those_of_the_feature_extractor(mels):
    import transformers

    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    np.testing.assert_allclose(mel_filters(mels), extractor.mel_filters.T, atol=1e-7)
    sounds = [sound(50000), 0.01 * sound(20001, 1)]
    want = extractor(sounds, sampling_rate=16000, return_tensors="np").input_features
    np.testing.assert_allclose(log_mel(sounds, 16000, mels=mels), want, atol=1e-4)
