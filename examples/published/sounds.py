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
FRONT_CENTER = "/usr/share/sounds/alsa/Front_Center.wav"
SHA256 = "0d61518bcd3f13b0c709a5298e939caf698b80d31d71d50475365ee0e5536cc9"


def front_center() -> np.ndarray:
    """A woman says "Front, center": from the package alsa-utils (GPL-2), installed or downloaded by apt.

    Raises:
        ConnectionError: it is not installed, and apt cannot download it.
        ValueError: the file has another hash.
    """
    path = Path(FRONT_CENTER)
    kept = cache() / path.name
    if not path.exists() and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(_from_debian("alsa-utils", FRONT_CENTER))
    data = (path if path.exists() else kept).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{FRONT_CENTER} must have the SHA-256 {SHA256}.")
    return read(data)


def read(data: bytes) -> np.ndarray:
    """The samples of a mono wav file of 16 bits, resampled."""
    with wave.open(io.BytesIO(data)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError("the file must be mono, of 16 bits a sample.")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        rate = file.getframerate()
    return scipy.signal.resample_poly(samples, RATE // np.gcd(RATE, rate), rate // np.gcd(RATE, rate))


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
