"""Reports of several files, and of files that could not be read, as one document."""

from __future__ import annotations

import json
from collections.abc import Sequence

from unbackdoor.findings import SCHEMA_VERSION, Report
from unbackdoor.findings.values import as_json
from unbackdoor.report.sarif import render_unread


def together(reports: Sequence[Report], failed: Sequence[tuple[str, str]], form: str, *, single: bool) -> str:
    """One document for all reports and all files that could not be read; of several paths always the same shape.

    Args:
        reports: what was found.
        failed: files that could not be read, each with the reason.
        form: "text", "html" (of one report), "json" or "sarif".
        single: whether one path was asked for.
    """
    if form == "text":
        return "\n".join(report.to_text() for report in reports)
    if form == "html":
        return reports[0].to_html()
    documents = [json.loads(report.to_json() if form == "json" else report.to_sarif()) for report in reports]
    if form == "sarif":
        documents += [json.loads(render_unread(path, reason)) for path, reason in failed]
    if single:
        return as_json(documents[0])
    if form == "json":
        unread = [{"source": path, "error": reason} for path, reason in failed]
        return as_json({"schema_version": SCHEMA_VERSION, "reports": documents, "failed": unread})
    return as_json({**documents[0], "runs": [run for document in documents for run in document["runs"]]})
