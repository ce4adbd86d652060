"""How many examples a state machine gets: as many as its test says, times what the profile of hypothesis asks for."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 50  # examples in the profile `dev`


def stateful(examples: int, steps: int) -> settings:
    """Settings for a state machine: so many runs in the profile `dev`, of up to so many steps."""
    scaled = examples * settings.default.max_examples // _USUAL
    return settings(max_examples=scaled, stateful_step_count=steps, deadline=None)
