"""Attention, linear recurrences and convolutions. README.md in this folder explains how an attention call runs."""
