"""The RateLimit fields of the IETF draft, in the forms that its revisions gave them."""

from __future__ import annotations

import re

# Of structured fields (RFC 9651) only what these fields use: members with a value, and parameters.
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_VALUE = rf"(?:{_STRING}|:[A-Za-z0-9+/=]*:|[-A-Za-z0-9_.*?][-A-Za-z0-9_.*:/%+]*)"
_MEMBER = re.compile(rf"(?:(?P<name>[A-Za-z*][-A-Za-z0-9_.*]*)(?:=(?P<value>{_VALUE}))?|(?P<item>{_STRING}))")
_PARAMETER = re.compile(rf" *; *(?P<name>[a-z*][-a-z0-9_.*]*)(?:=(?P<value>{_VALUE}))?")
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def number(text: str) -> float | None:
    """A number of ASCII digits, at most one dot among them; None for anything else. Never raises."""
    text = text.strip(" \t")
    return float(text) if _NUMBER.fullmatch(text) else None


def rate_limit(text: str, policy: str = "") -> float | None:
    """Seconds until there is quota again, by a `RateLimit` field; None if some is left or the field is malformed.

    draft-ietf-httpapi-ratelimit-headers, revision 11: `"burst";r=0;t=30, "daily";r=7;t=900`, where of several
    exhausted limits the longest counts. A limit without its `t` has the window of the `RateLimit-Policy` field's item
    of the same name (`"burst";q=100;w=60`): by then there is more at the latest. Revision 07:
    `limit=10, remaining=0, reset=7`.
    """
    members = _members(text.strip(" \t"))
    if members is None:
        return None
    values = {name: value for name, value, _ in members if name}
    if "reset" in values:
        return exhausted(values.get("remaining", ""), values["reset"])
    windows = {name: parameters.get("w", "") for name, _, parameters in _members(policy.strip(" \t")) or ()}
    waits = [
        exhausted(parameters.get("r", ""), parameters.get("t", windows.get(name, "")))
        for name, _, parameters in members
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def exhausted(remaining: str, reset: str) -> float | None:
    """`reset` as a number, if `remaining` is zero."""
    return number(reset) if number(remaining) == 0 else None


def _members(text: str) -> list[tuple[str, str, dict[str, str]]] | None:
    members: list[tuple[str, str, dict[str, str]]] = []
    at = 0
    while True:
        match = _MEMBER.match(text, at)
        if match is None:
            return None
        parameters: dict[str, str] = {}
        at = match.end()
        while parameter := _PARAMETER.match(text, at):
            parameters[parameter["name"]] = parameter["value"] or ""
            at = parameter.end()
        members.append((match["name"] or match["item"], match["value"] or "", parameters))
        if at == len(text):
            return members
        comma = _COMMA.match(text, at)
        if comma is None:
            return None
        at = comma.end()
