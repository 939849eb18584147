"""Detectors that see a network and nothing else: no data."""
