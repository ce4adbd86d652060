"""The command `retrypolicy ledger`: list, show, resolve, release, purge and stats on any ledger by its URL."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

from retrypolicy.errors import ConfigurationError
from retrypolicy.events import clean
from retrypolicy.guard import upkeep
from retrypolicy.guard.key import Secret, check_key, find
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record
from retrypolicy.guard.opening import LEDGER_VARIABLE, ledger_from_environment, open_existing

DONE, NOTHING = 0, 1
"""Exit codes: it was done; there was nothing to do, or not all of it could be done. (2: one line on what is wrong.)"""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def add_parser(subparsers: Any) -> None:
    """Add `ledger` and its subcommands."""
    parser = subparsers.add_parser(
        "ledger",
        help="look after the durable record of sends",
        description="Look after the durable record of sends.",
        epilog="Exit code 0: done; 1: nothing to do, or not all of it could be done; 2: something is wrong.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    make = _maker(actions)
    listing = make("list", _list, "list records")
    _add_filters(listing)
    listing.add_argument("--limit", type=_count, metavar="N", help="at most so many")

    showing = make("show", _show, "all that the ledger keeps of a key")
    _add_keys(showing)

    resolving = make("resolve", _resolve, "say what became of held sends: applied, or not applied")
    _add_keys(resolving)
    resolving.add_argument(
        "verdict",
        choices=["applied", "not_applied"],
        help="applied: it took effect, and is never sent again; not_applied: the next call with this key is sent",
    )
    _add_filters(resolving, phases=False)
    _add_bulk(resolving)

    releasing = make("release", _release, "take keys from their owners: claimed becomes free, armed becomes held")
    _add_keys(releasing)
    _add_filters(releasing)
    _add_bulk(releasing)

    purging = make("purge", _purge, "delete what is past its retention; armed and held records stay")
    _add_care(purging)

    make("stats", _stats, "count the records of each phase")


def _maker(actions: Any) -> Callable[[str, Callable[..., int], str], argparse.ArgumentParser]:
    def make(name: str, work: Callable[[argparse.Namespace, Ledger], int], summary: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=_sentence(summary))
        parser.add_argument("--ledger", metavar="URL", help=f"which ledger (default: {LEDGER_VARIABLE})")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        parser.set_defaults(run=lambda options: _run(work, options))
        return parser

    return make


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("digests", nargs="*", metavar="DIGEST", help="first digits of a record's key, as listed")
    parser.add_argument(
        "--key", action="append", default=[], help="the key itself; needs the secret that the ledger is kept with"
    )


def _add_filters(parser: argparse.ArgumentParser, *, phases: bool = True) -> None:
    if phases:
        parser.add_argument(
            "--phase", action="append", choices=[p.name.lower() for p in Phase], help="may be given several times"
        )
    parser.add_argument("--provider", metavar="NAME", help="sent to this provider")
    parser.add_argument("--label", metavar="TEXT", help="with this in their label")
    parser.add_argument("--age", type=_age, metavar="AGE", help="first seen at least so long ago: 90s, 15m, 2h, 3d")


def _add_bulk(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every record that there is to change")
    _add_care(parser)


def _add_care(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--by", metavar="NAME", help="for the audit (default: account@host)")


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; must be a number with s, m, h, d or w")
    return float(match[1]) * _UNITS[match[2]]


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of records")
    return int(text)


def ledger_url(given: str | None) -> str:
    """The URL that was given, or the environment's. Raises `ConfigurationError` where there is none."""
    url = given or ledger_from_environment()
    if not url:
        raise ConfigurationError(f"no ledger is named; give --ledger URL, or set {LEDGER_VARIABLE}")
    return url


def _run(work: Callable[[argparse.Namespace, Ledger], int], options: argparse.Namespace) -> int:
    with _audited(), closing(open_existing(ledger_url(options.ledger))) as ledger:
        return work(options, ledger)


@contextmanager
def _audited() -> Iterator[None]:
    """Audit lines go to standard error, and wherever the program has its log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    level = upkeep.logger.level
    upkeep.logger.addHandler(handler)
    upkeep.logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        upkeep.logger.removeHandler(handler)
        upkeep.logger.setLevel(level)


# -- the actions -----------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace, ledger: Ledger) -> int:
    records = islice(upkeep.find(ledger, _filter(options)), options.limit)
    if options.json:
        return _print_json(map(upkeep.as_dict, records))
    now = upkeep.time_of(ledger)
    rows = [
        (r.key.hex()[:12], r.phase.name.lower(), r.provider or "-", span(now - r.first_seen), str(r.attempts), r.label)
        for r in sorted(records, key=lambda r: r.first_seen)
    ]
    if not rows:
        print("no such records")
        return NOTHING
    print_table(("key", "phase", "provider", "age", "attempts", "label"), rows)
    return DONE


def _show(options: argparse.Namespace, ledger: Ledger) -> int:
    records = _named(options, ledger)
    if not records:
        raise ConfigurationError("no record is named; give a DIGEST, or --key")
    if options.json:
        return _print_json(map(upkeep.as_dict, records))
    for record in records:
        for name, value in upkeep.as_dict(record).items():
            print(f"{name + ':':<13} {_shown(name, value)}")
        print()
    return DONE


def _resolve(options: argparse.Namespace, ledger: Ledger) -> int:
    options.phase = [Phase.HELD.name.lower()]
    by = options.by or upkeep.whoami()
    return _change(
        options, ledger, lambda r: upkeep.resolve(ledger, r, options.verdict, by=by, dry_run=options.dry_run)
    )


def _release(options: argparse.Namespace, ledger: Ledger) -> int:
    options.phase = options.phase or [Phase.CLAIMED.name.lower(), Phase.ARMED.name.lower()]
    by = options.by or upkeep.whoami()
    return _change(options, ledger, lambda r: upkeep.release(ledger, r, by=by, dry_run=options.dry_run))


def _change(options: argparse.Namespace, ledger: Ledger, work: Callable[[Record], upkeep.Change]) -> int:
    filtered = options.all or options.provider is not None or options.label is not None or options.age is not None
    named = bool(options.digests or options.key)
    if named == filtered:
        raise ConfigurationError(
            "which records? Give DIGESTs or --key, or choose by --provider, --label, --age or --all, but not both"
        )
    # All of them first: a listing must not meet its own changes.
    records = _named(options, ledger) if named else list(upkeep.find(ledger, _filter(options)))
    changes = [work(record) for record in records]
    if options.json:
        _print_json(_change_as_dict(change, options.dry_run) for change in changes)
    else:
        for change in changes:
            print(_change_as_line(change, options.dry_run))
        if not changes:
            print("no such records")
    return DONE if changes and all(change.after is not None for change in changes) else NOTHING


def _purge(options: argparse.Namespace, ledger: Ledger) -> int:
    count = upkeep.purge(ledger, by=options.by or upkeep.whoami(), dry_run=options.dry_run)
    if options.json:
        deleted = 0 if options.dry_run else count
        return _print_json([{"expired": count, "deleted": deleted, "dry_run": options.dry_run}])
    print(f"{count} expired record(s) {'would be ' if options.dry_run else ''}deleted")
    return DONE


def _stats(options: argparse.Namespace, ledger: Ledger) -> int:
    found = upkeep.stats(ledger)
    if options.json:
        return _print_json([found])
    print_table(("phase", "records"), [(phase, str(count)) for phase, count in found["phases"].items()])
    if found["held_by_provider"]:
        print()
        print_table(("held, of", "records"), [(n or "-", str(c)) for n, c in found["held_by_provider"].items()])
        print(f"\nthe oldest attempt that is held was {span(found['oldest_held_seconds'] or 0.0)} ago")
    return DONE


# -- parts -----------------------------------------------------------------------------------------------------------


def _filter(options: argparse.Namespace) -> Filter:
    return Filter(
        phases=frozenset(Phase[name.upper()] for name in options.phase or ()),
        provider=options.provider,
        label=options.label,
        older_than=options.age,
    )


def _named(options: argparse.Namespace, ledger: Ledger) -> list[Record]:
    digests = [*options.digests, *(_digest_of(key, ledger) for key in options.key)]
    return [upkeep.look_up(ledger, digest) for digest in digests]


def _digest_of(key: str, ledger: Ledger) -> str:
    """By the current secret, or by an older one if only that one has a record."""
    secret = Secret.of(None)
    record, _ = find(ledger, secret, check_key(key))
    if record is not None:
        return record.key.hex()
    hint = "; no secret is set (RETRYPOLICY_SECRET), and an application may have one" if secret.missing else ""
    raise ConfigurationError(f"--key: this ledger has no record of that key{hint}")


def _change_as_line(change: upkeep.Change, dry_run: bool) -> str:
    text = f"{change.record.key.hex()[:12]}  {change.record.phase.name.lower()}"
    if change.after is None:
        text += f": not changed, {change.why}"
    elif change.after is change.record.phase:
        text += ", free again"
    else:
        text += f" -> {change.after.name.lower()}"
    if change.record.label:
        text += f"  [{clean(change.record.label)}]"
    return "would be: " + text if dry_run else text


def _change_as_dict(change: upkeep.Change, dry_run: bool) -> dict[str, Any]:
    return {
        "key": change.record.key.hex(),
        "label": change.record.label,
        "action": change.action,
        "before": change.record.phase.name.lower(),
        "after": None if change.after is None else change.after.name.lower(),
        "why": change.why,
        "by": change.by,
        "dry_run": dry_run,
    }


def _print_json(rows: Iterable[Mapping[str, Any]]) -> int:
    code = NOTHING
    for row in rows:
        print(json.dumps(row))
        code = DONE
    return code


def _shown(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return upkeep.moment(value)
    return clean(json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value))


def span(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "m")):
        if seconds >= unit:
            return f"{seconds / unit:.0f}{name}"
    return f"{max(0.0, seconds):.0f}s"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they need to be, the last one open."""
    lines = [list(head), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[-1]]).rstrip())
