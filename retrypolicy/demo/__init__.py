"""The main job, on real messages: three ways to send mail on a bad day, counted by the server (`retrypolicy demo`)."""

from __future__ import annotations

MODES = ("plain", "recipe", "retrypolicy")
"""The ways of sending: plain Anymail; the recipe of Anymail's documentation; retrypolicy's backends and a ledger."""

APIS = ("mandrill", "resend")
"""The APIs that the demo plays: one without idempotency keys, and one that honours them."""

MESSAGE_HEADER = "X-Demo-Message"
"""The header of the e-mail (not of HTTP) that tells the server which message it is."""

TIMEOUT = 0.4
"""Seconds that a client waits for an answer. Real ones wait longer; here only the scale is smaller."""

LATE = TIMEOUT + 0.1
"""Seconds after which the API answers when it answers late."""
