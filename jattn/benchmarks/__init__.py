"""Benchmarks of jattn against other libraries: `python -m jattn.benchmarks`. `README.md` beside it has the results."""
