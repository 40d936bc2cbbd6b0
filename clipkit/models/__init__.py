"""Image encoders (timm), text encoders (transformers), projection heads, and the dual encoder built from them."""

from clipkit.models.dual_encoder import DualEncoder, build_dual_encoder, build_encoders
from clipkit.models.encoder import Encoder, EncoderContext
from clipkit.models.weights import load_matching

__all__ = ["DualEncoder", "Encoder", "EncoderContext", "build_dual_encoder", "build_encoders", "load_matching"]
