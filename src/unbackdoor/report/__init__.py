"""What was found and done, as plain values, and how a reader sees it. Nothing here imports torch."""

from unbackdoor.report.record import ClassifierReport, LayerReport, Remark, Report

__all__ = ["ClassifierReport", "LayerReport", "Remark", "Report"]
