"""How Sphinx builds these pages."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from typing import Any

project = "retrypolicy"
author = "retrypolicy maintainers"
copyright = "retrypolicy maintainers"
version = release = installed("retrypolicy")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
default_role = "code"
nitpick_ignore_regex = [("py:.*", ".*")]  # base classes, of other projects or without a page here
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "retrypolicy"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}


FIELD = re.compile(r"( *)([a-z_]+(?:, [a-z_]+)*): ")


def fields(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings list fields as plain `name: text`; here that becomes a list. Continued lines are indented by four."""
    before, inside = "", False
    for at, line in enumerate(lines):
        starts = FIELD.match(line) is not None and (inside or not before or before.endswith(":"))
        if starts:
            lines[at] = FIELD.sub(r"\1*   ``\2``: ", line, count=1)
        inside = starts or (inside and line.startswith(" "))
        before = line


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", fields)
