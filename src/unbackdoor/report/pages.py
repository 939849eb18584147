"""Pages from templates, with everything escaped: the one place where jinja2 is set up.

A template's values are plain: text, numbers, records. Every text that it shows is made visible (no control character
reaches a page) and escaped, so a template cannot forget either; what is markup already (`markupsafe.Markup`) was made
by another template or is our own.

A page loads nothing and runs nothing: a content security policy forbids it, and there is no script to run (but one on
the benchmark's page, which that policy names by its digest). Tooltips are SVG titles, folding is <details>, light and
dark follow the reader's system.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from unbackdoor.report import summary
from unbackdoor.report.escape import short, visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
#: The package whose templates every page can use.
COMMON = "unbackdoor.report"


def page(
    template: str | Template, *, package: str = COMMON, title: str, style: str = "", script: str = "", **values: Any
) -> str:
    """A complete page, from a template that extends `page.html`.

    Args:
        template: one, or its name in the folder `templates` of the package.
        package: whose it is.
        title: of the window.
        style: CSS of our own, on top of the common one.
        script: of our own; the policy lets this very text run and nothing else.
        values: what the template shows.
    """
    policy = POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"{POLICY}; script-src 'sha256-{digest}'"
    common = resources.files(COMMON).joinpath("style.css").read_text(encoding="utf-8")
    frame = {"policy": Markup(policy), "style": Markup(common + style), "script": Markup(script)}
    return environment(package).get_template(template).render(title=title, **frame, **values)


@functools.cache
def environment(package: str = COMMON) -> Environment:
    """The templates of a package and the common ones."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, COMMON))]),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"short": short, "thousands": "{:,}".format, "whole": _whole, "count": summary.count}
    return made


def _shown(value: object) -> object:
    return value if type(value) is Markup or not isinstance(value, str) else visible(value)


def _whole(text: str) -> Markup:
    """A text that is not broken across lines."""
    return Markup(escape(visible(text)).replace(" ", Markup("&nbsp;")))
