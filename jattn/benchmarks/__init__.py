"""Benchmarks of jattn against other libraries: `python -m jattn.benchmarks`. README.md has the results."""
