"""How a reader sees what was found: text, SARIF, pages. Nothing here imports torch."""

import importlib

from unbackdoor.findings import Damage, Detection, Report, Witness

#: A kind of finding -> its forms, and the file of this folder that renders each.
FORMS: dict[type, dict[str, str]] = {
    Report: {"text": "text", "html": "html", "sarif": "sarif"},
    Detection: {"text": "results"},
    Damage: {"text": "damage"},
    Witness: {"text": "witness", "html": "witness_page"},
}


def render(found: object, form: str) -> str:
    """A finding in one of its `FORMS`.

    Raises:
        ValueError: the form is not one of them.
    """
    forms = FORMS[type(found)]
    if form not in forms:
        raise ValueError(f"form: expected one of {', '.join(forms)}, got {form!r}")
    text: str = importlib.import_module(f"unbackdoor.report.{forms[form]}").render(found)
    return text


__all__ = ["FORMS", "render"]
