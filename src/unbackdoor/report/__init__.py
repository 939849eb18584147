"""How a reader sees what was found: text, SARIF, pages. Nothing here imports torch."""

import importlib

from unbackdoor.findings import Report

#: The forms of a report; each is a file of this folder with a `render` of its own.
FORMS = ("text", "html", "sarif")


def render(report: Report, form: str) -> str:
    """A report in one of `FORMS`.

    Raises:
        ValueError: the form is not one of them.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    text: str = importlib.import_module(f"unbackdoor.report.{form}").render(report)
    return text


__all__ = ["FORMS", "render"]
