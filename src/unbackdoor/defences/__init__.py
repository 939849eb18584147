"""Backdoor defences: one file each."""
