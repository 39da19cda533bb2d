"""Checkpoints: files of named tensors, and the table that maps them to the parameters of a model."""
