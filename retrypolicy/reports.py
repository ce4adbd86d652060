"""Reports on calls: put on responses and exceptions, and found there again."""

from __future__ import annotations

from retrypolicy.call import Call
from retrypolicy.outcome import Report

_ATTRIBUTE = "_retrypolicy_report"


def attach_call(response: object, call: Call) -> None:
    """Put the call on a response: its report is made when somebody asks."""
    setattr(response, _ATTRIBUTE, call)


def attach(target: object, report: Report) -> None:
    """Put a report on a response or an exception; an exception gets a line about it, too."""
    try:
        setattr(target, _ATTRIBUTE, report)
    except AttributeError:
        return  # an object with slots: its report is lost, its meaning is not
    if isinstance(target, BaseException):
        notes = [n for n in getattr(target, "__notes__", []) if not n.startswith("retrypolicy: ")]
        target.__notes__ = [*notes, "retrypolicy: " + summary(report)]


def summary(report: Report) -> str:
    """One line for people."""
    text = f"{report.total_attempts} attempt(s), effect {report.effect.value}, stopped: {report.reason.value}"
    if report.held:
        text += f"; key {report.key_digest or ''}"[:20] + " is held"
    if report.retry_at is not None:
        text += f"; retry at {report.retry_at:.0f}"
    return text


def report(of: object) -> Report | None:
    """The report on the call that produced this response or exception; None if no engine had a part in it.

    Looks through the causes of an exception, so that errors which other libraries make of ours are answered, too.
    """
    seen: set[int] = set()
    while of is not None and id(of) not in seen:
        seen.add(id(of))
        found = getattr(of, _ATTRIBUTE, None)
        if isinstance(found, Call):
            return found.report()
        if found is None and isinstance(of, BaseException):
            found = getattr(of, "report", None) or getattr(getattr(of, "response", None), _ATTRIBUTE, None)
            if isinstance(found, Call):
                return found.report()
        if isinstance(found, Report):
            return found
        of = (of.__cause__ or of.__context__) if isinstance(of, BaseException) else None
    return None
