"""Eight emulated CPU devices for every test; the environment must say so before JAX is first imported."""

import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("JAX was imported before tests/conftest.py could ask it for eight CPU devices")

COUNT = "--xla_force_host_platform_device_count"
if COUNT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COUNT}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances are measured in full float32, which a GPU's default is not
os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files
