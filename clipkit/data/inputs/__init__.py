"""What a batch holds for each sample: one input per kind of value, shared by the tasks that need it."""

from clipkit.data.inputs.base import DecodedInput, Decoding, Input
from clipkit.data.inputs.pixels import Pixels
from clipkit.data.inputs.tokens import Captions, Tokens
from clipkit.data.inputs.vectors import Vectors

__all__ = ["Captions", "DecodedInput", "Decoding", "Input", "Pixels", "Tokens", "Vectors"]
