"""The model file formats; each file in this folder registers its own."""

from unbackdoor.checkpoint.formats import safetensors, torch  # in this order: a safetensors file may begin as any other

__all__ = ["safetensors", "torch"]
