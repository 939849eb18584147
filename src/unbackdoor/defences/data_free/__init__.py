"""Defences that see a network and nothing else: no data, no gradient."""

from unbackdoor.defences.data_free.clp import CLP
from unbackdoor.defences.data_free.lpp import LPP

__all__ = ["CLP", "LPP"]
