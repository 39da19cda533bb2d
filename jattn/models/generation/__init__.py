"""Generation of tokens: `generate`, and the protocol of models that it generates with."""

from .api import Generated, generate
from .config import GenerationConfig
from .protocol import EncoderDecoder, GenerativeModel

__all__ = ["EncoderDecoder", "Generated", "GenerationConfig", "GenerativeModel", "generate"]
