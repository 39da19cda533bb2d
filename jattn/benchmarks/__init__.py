"""`python -m jattn.benchmarks`: this library beside its peers, on the device at hand."""
