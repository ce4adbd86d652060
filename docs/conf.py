"""How Sphinx builds these pages."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "retrypolicy"
author = "retrypolicy maintainers"
copyright = "retrypolicy maintainers"
version = release = installed("retrypolicy")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "retrypolicy"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
