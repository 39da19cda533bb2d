"""Arrays spread over the devices of two processes: values, gradients and shardings are those of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax

import jattn

WORKER = Path(__file__).with_name("worker.py")


def test_two_processes_of_four_devices():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(jattn.__file__).parents[1]), *sys.path])
    if jax.config.jax_compilation_cache_dir:  # programs that the tests have compiled before
        environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(WORKER), str(port), "2", str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        printed = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], "\n".join(printed)
    assert all("equal" in text for text in printed)
