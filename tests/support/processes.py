"""Runs Python in other processes with some of the emulated devices, sharing the tests' compiled programs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax

import jattn


def start_python(*arguments: str, devices: int = 4) -> subprocess.Popen:
    """A Python process with these arguments, that imports what the tests do; its output is one stream of text."""
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}"),
        "PYTHONPATH": os.pathsep.join([str(Path(jattn.__file__).parents[1]), *sys.path]),
    }
    if jax.config.jax_compilation_cache_dir:
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
            environment[name.upper()] = str(getattr(jax.config, name))
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> int:
    """A port of this machine on which processes can meet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
