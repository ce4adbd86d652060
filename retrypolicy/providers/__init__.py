"""Provider profiles: one TOML file per API, and their loader.

What an API promises about repeats, limits and failures is written down here as data, each line with its source.
`load("resend")` gives the profile; a path to a TOML file or a `Provider` is taken as well, and other packages add
theirs by name in the entry-point group `retrypolicy.providers`.
"""

from __future__ import annotations

from retrypolicy.providers.answers import Answers, Kept, Template
from retrypolicy.providers.key import KeyPlacement
from retrypolicy.providers.loader import load, names
from retrypolicy.providers.profile import Provider

__all__ = ["Answers", "Kept", "KeyPlacement", "Provider", "Template", "load", "names"]
