"""Generation of tokens: `generate`, and the protocol of models that it generates with."""

from .protocol import EncoderDecoder, GenerativeModel

__all__ = ["EncoderDecoder", "GenerativeModel"]
