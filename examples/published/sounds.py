"""Spoken words that come with Debian, at the sampling rate of Whisper."""

import hashlib
import io
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
import scipy.signal

from .packages import cache

RATE = 16000
FOLDER = "/usr/share/sounds/alsa"
SHA256 = {
    "Front_Center": "0d61518bcd3f13b0c709a5298e939caf698b80d31d71d50475365ee0e5536cc9",
    "Front_Left": "9f97e8458785da2f0aa0ec60bf9cc81520cbf80a4683e83eca9cb5f2958e9fef",
    "Front_Right": "1fdea4d7003f1f7d3e48d3521aaab0a112c4ac570b02ddf1813abacac3070f6f",
    "Rear_Center": "9343207e3298813fdc4d26b7948e15a38533c37a9f232c3eff809b565398b330",
    "Rear_Left": "1679e0557701864d55b742a0abd3fe5f50d95b1bfcb55ffad4b597dcc7e3c7b8",
    "Rear_Right": "12828d125f692faa75c7445d52125dcc2c36f82c4f7a3ef49b8ae6afd74ada9d",
    "Side_Left": "03dc7c641d7825417d2a261831715e945e95d87343fb037db910e7ce4f87a2a1",
    "Side_Right": "ecdd0329945f355960796a56f8126d5080ed93fdd2437c7eaddbbbd56137d7e9",
}

SENTENCES = {
    "agent-pass": "a1a1615e24d05512a8be43ca690c0d0f4ba2e6daf396538f785da579a9b538c3",
    "queue-thankyou": "9d2f28e00c05c072f6072b0b50296141812f0fc9ed1716851f9b4be580b32193",
}


def front_center() -> np.ndarray:
    """The prompt "Front_Center", in which a woman says "Front, center."; raises as `prompt`."""
    return prompt("Front_Center")


def prompt(name: str) -> np.ndarray:
    """A prompt of two words, said by a woman: from the package alsa-utils (GPL-2), installed or downloaded by apt.

    Args:
        name: a key of `SHA256`, the words that are said.

    Raises:
        ConnectionError: it is not installed, and apt cannot download it.
        ValueError: the file has another hash.
    """
    return _samples(Path(FOLDER) / f"{name}.wav", "alsa-utils", SHA256[name])


def sentence(name: str) -> np.ndarray:
    """A sentence, said by a woman on the telephone: from the package asterisk-core-sounds-en-wav (CC-BY-SA-3.0).

    Args:
        name: a key of `SENTENCES`.

    Raises:
        ConnectionError, ValueError: as in `prompt`.
    """
    folder = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
    return _samples(folder / f"{name}.wav", "asterisk-core-sounds-en-wav", SENTENCES[name])


def _samples(path: Path, package: str, sha256: str) -> np.ndarray:
    """The samples of a file of a package of Debian, installed or downloaded, at `RATE`."""
    kept = cache() / path.name
    if not path.exists() and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(_from_debian(package, str(path)))
    data = (path if path.exists() else kept).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} must have the SHA-256 {sha256}.")
    samples, rate = read(data)
    return scipy.signal.resample_poly(samples, RATE // np.gcd(RATE, rate), rate // np.gcd(RATE, rate))


def read(data: bytes) -> tuple[np.ndarray, int]:
    """The samples of a mono wav file of 16 bits, between -1 and 1, and how many there are in a second.

    Raises:
        ValueError: it is another file.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            rate, frames = file.getframerate(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        why = f" ({error})" if str(error) else ""
        raise ValueError(f"the sound must be a wav file{why}. sox converts: sox SOUND sound.wav") from None
    if (channels, width) != (1, 2):
        raise ValueError(
            f"the sound must be mono, of 16 bits a sample; it has {channels} channels, of {8 * width} bits. sox "
            "converts: sox SOUND -c 1 -b 16 sound.wav"
        )
    return np.frombuffer(frames[: len(frames) // 2 * 2], "<i2") / 32768, rate


def _from_debian(package: str, path: str) -> bytes:
    """A file of a package of Debian, which is downloaded and not installed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, check=True)
            (file,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(file), folder], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise ConnectionError(f"apt could not download {package}: {error}") from None
        return (Path(folder) / path.removeprefix("/")).read_bytes()
