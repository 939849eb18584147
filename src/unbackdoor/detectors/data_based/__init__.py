"""Detectors that are given images."""
