"""Image encoders (timm), text encoders (transformers), projection heads and the dual encoder made of them."""

from clipkit.models.dual_encoder import DualEncoder, build_model
from clipkit.models.text_encoder import mask_always, write_out_attention
from clipkit.models.weights import load_matching

__all__ = ["DualEncoder", "build_model", "load_matching", "mask_always", "write_out_attention"]
