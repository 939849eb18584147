"""The kinds of model files. A file in this folder is one as soon as it registers itself."""

from unbackdoor.checkpoint.formats import safetensors, torch  # in this order: a safetensors file may begin as any other

__all__ = ["safetensors", "torch"]
