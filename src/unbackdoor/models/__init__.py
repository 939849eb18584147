"""The package's own networks, and any other by name. No attack and no defence ever edits or copies one."""

from unbackdoor.models.arch import ARCHITECTURES, Arch, parse_arch

__all__ = ["ARCHITECTURES", "Arch", "parse_arch"]
