"""Trained models that come inside packages of PyPI, and readers of the formats that they are in."""
