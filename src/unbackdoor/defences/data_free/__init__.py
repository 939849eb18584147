"""Defences that see a network and nothing else: no data."""

from unbackdoor.defences.data_free.best import Best, best
from unbackdoor.defences.data_free.clp import CLP
from unbackdoor.defences.data_free.erase import Erase
from unbackdoor.defences.data_free.forget import Forget
from unbackdoor.defences.data_free.lpp import LPP
from unbackdoor.defences.data_free.pushing import Pushing

__all__ = ["CLP", "LPP", "Best", "Erase", "Forget", "Pushing", "best"]
