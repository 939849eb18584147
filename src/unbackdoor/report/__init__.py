"""What was found and done, as plain values, and how a reader sees it. Nothing here imports torch."""

from unbackdoor.report.record import ClassifierReport, DataReport, LayerReport, Remark, Report, Stage, finite

__all__ = ["ClassifierReport", "DataReport", "LayerReport", "Remark", "Report", "Stage", "finite"]
