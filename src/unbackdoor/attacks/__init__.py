"""Backdoor attacks: one file each, one interface."""

from unbackdoor.attacks.badnets import BadNets
from unbackdoor.attacks.base import ATTACKS, Attack, Poisoned, describe_attack, load_attack, parse_attack, read_attack

__all__ = ["ATTACKS", "Attack", "BadNets", "Poisoned", "describe_attack", "load_attack", "parse_attack", "read_attack"]
