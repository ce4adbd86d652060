"""`manage.py retrypolicy`: look after the ledger that the settings name."""

from __future__ import annotations

import json
import re
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from django.core.checks import INFO, run_checks
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, close_old_connections, connections

from retrypolicy.clock import SystemClock
from retrypolicy.django import settings
from retrypolicy.django.checks import TAG
from retrypolicy.django.delivery import look, outcome, sweep
from retrypolicy.django.keys import normal_key
from retrypolicy.django.ledger import DatabaseLedger, where_is
from retrypolicy.django.mailers import mailers
from retrypolicy.django.silence import without_event
from retrypolicy.engine import mode
from retrypolicy.errors import RetryPolicyError
from retrypolicy.guard import upkeep
from retrypolicy.guard.key import find
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record
from retrypolicy.step import GiveUp, slim

HELD = frozenset({Phase.HELD})
OWNED = frozenset({Phase.CLAIMED, Phase.ARMED})
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not an age; must be such as 90s, 15m, 2h or 3d")
    return float(match[1]) * _UNITS[match[2]]


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number; must be 1 or more")
    return int(text)


class Command(BaseCommand):
    """`status`, `resolve`, `release`, `sweep`, `purge` and `doctor`."""

    help = "Look after the record of sends. Exit code 1: there is something that somebody must look at."
    requires_system_checks: Any = []

    def add_arguments(self, parser: CommandParser) -> None:
        """One parser for each action."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

        status = actions.add_parser("status", help="count the records of each phase, and list what is held")
        self._filters(status)
        status.add_argument("--json", action="store_true", help="one JSON object")

        resolve = actions.add_parser("resolve", help="say what became of held sends")
        resolve.add_argument(
            "verdict",
            choices=["applied", "not_applied"],
            help="applied: it arrived, and is never sent again; not_applied: the next call with this key is sent",
        )
        self._selection(resolve)
        resolve.add_argument(
            "--without-event",
            action="store_true",
            help="with not_applied: those of which no event came in the time that RELEASE_AFTER gives; made for cron",
        )

        release = actions.add_parser(
            "release", help="take keys from owners that are dead: claimed becomes free, armed held"
        )
        self._selection(release)

        sweep = actions.add_parser("sweep", help="send what is due in the outbox; made for cron, or to run on and on")
        sweep.add_argument(
            "--database", metavar="ALIAS", help="where the outbox is (default: where models are written)"
        )
        sweep.add_argument("--limit", type=_count, metavar="N", help="send at most so many")
        sweep.add_argument("--every", type=_age, metavar="AGE", help="do not end, but look again so often: 5s, 1m")

        actions.add_parser("purge", help="delete what is past its retention; armed and held records stay")
        actions.add_parser("doctor", help="say what of settings, ledger and mailers is not as it should be")

    def _filters(self, parser: Any) -> None:
        parser.add_argument("--provider", metavar="NAME", help="sent to this provider")
        parser.add_argument("--label", metavar="TEXT", help="with this in their label")
        parser.add_argument("--age", type=_age, metavar="AGE", help="first seen at least so long ago: 90s, 15m, 2h, 3d")

    def _selection(self, parser: Any) -> None:
        parser.add_argument("digests", nargs="*", metavar="DIGEST", help="first digits of a key, as status lists them")
        parser.add_argument("--key", action="append", default=[], help="the key itself, as the message was given it")
        self._filters(parser)
        parser.add_argument("--all", action="store_true", help="every record that there is to change")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--by", metavar="NAME", default="", help="for the audit (default: account@host)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked for; what is wrong is told in one line."""
        try:
            getattr(self, f"_{options['action']}")(options)
        except RetryPolicyError as error:
            raise CommandError(str(error)) from None

    # -- the actions

    def _status(self, options: dict[str, Any]) -> None:
        ledger = settings.required_ledger()
        found = upkeep.stats(ledger)
        held = list(upkeep.find(ledger, _where(options, HELD)))
        if options["json"]:
            records = [dict(upkeep.as_dict(record)) for record in held]
            self.stdout.write(json.dumps({**found, "held": records}))
            return
        self.stdout.write("   ".join(f"{phase} {count}" for phase, count in found["phases"].items()))
        for record in held:
            self.stdout.write(_line(record))

    def _resolve(self, options: dict[str, Any]) -> None:
        verdict: Literal["applied", "not_applied"] = options["verdict"]
        ledger = settings.required_ledger()
        if options["without_event"]:
            if verdict != "not_applied":
                raise CommandError("--without-event proves that a message did not arrive: use not_applied")
            chosen: Iterable[tuple[Record, float]] = without_event(ledger)
            how = "no event"
        else:
            chosen = ((record, 0.0) for record in self._chosen(ledger, options, HELD))
            how = "resolved"
        by = options["by"] or upkeep.whoami()
        self._tell(
            upkeep.resolve(ledger, record, verdict, by=by, how=how, quiet=quiet, dry_run=options["dry_run"])
            for record, quiet in list(chosen)
        )

    def _release(self, options: dict[str, Any]) -> None:
        ledger = settings.required_ledger()
        by = options["by"] or upkeep.whoami()
        chosen = list(self._chosen(ledger, options, OWNED))
        self._tell(upkeep.release(ledger, record, by=by, dry_run=options["dry_run"]) for record in chosen)

    def _sweep(self, options: dict[str, Any]) -> None:
        using, every = options["database"], options["every"]
        if using is not None and using not in connections:
            raise CommandError(f"--database: {using!r} is not allowed; must be one of {', '.join(connections)}")
        while True:
            ends = Counter[str]()
            close_old_connections()
            try:
                for found in sweep(using=using, limit=options["limit"]):
                    end = outcome(found)
                    ends[end] += 1
                    if isinstance(found.step, GiveUp):
                        self.stdout.write(f"{found.name}  -> {end}: {slim(found.step.error)}")
            except DatabaseError as error:
                said = f"the outbox can't be read ({type(error).__name__}); has manage.py migrate been run?"
                if every is None:
                    raise CommandError(said) from None
                self.stderr.write(said)
            if ends or every is None:
                self.stdout.write(
                    "   ".join(f"{end} {count}" for end, count in sorted(ends.items())) or "nothing is due"
                )
            if every is None:
                break
            self.stdout.flush()
            SystemClock().sleep(every)
        lost = ends["failed"] + ends["unreadable"]
        if lost:
            raise CommandError(f"{lost} message(s) are not sent again by themselves; see the outbox in the admin")

    def _purge(self, options: dict[str, Any]) -> None:
        count = upkeep.purge(settings.required_ledger(), by=upkeep.whoami())
        self.stdout.write(f"{count} expired record(s) deleted")

    def _doctor(self, options: dict[str, Any]) -> None:
        bad = 0
        self.stdout.write(f"mode      {mode()}")
        for mailer in mailers():
            self.stdout.write(
                f"mailer    {mailer.where}: {mailer.backend}{'' if mailer.guarded else ' (not guarded by us)'}"
            )
        ledger = settings.ledger()
        if ledger is None:
            self.stdout.write("ledger    none: a crash between sending and answering is not remembered")
        else:
            self.stdout.write(f"ledger    {_named(ledger)}")
            problems = ledger.problems()
            bad += len(problems)
            for problem in problems:
                self.stdout.write(f"problem   {problem}")
            counts = upkeep.stats(ledger)["phases"]
            self.stdout.write(f"held      {counts['held']} send(s) wait for evidence")
        for line, is_bad in look():
            bad += is_bad
            self.stdout.write(f"outbox    {line}")
        databases = [ledger.alias] if isinstance(ledger, DatabaseLedger) else []
        for message in run_checks(tags=[TAG], databases=databases):
            bad += message.level > INFO
            self.stdout.write(f"{message.id}: {message.msg} {message.hint or ''}")
        if bad:
            raise CommandError(f"{bad} thing(s) are not as they should be")

    # -- parts

    def _chosen(self, ledger: Ledger, options: dict[str, Any], phases: frozenset[Phase]) -> Iterator[Record]:
        named = bool(options["digests"] or options["key"])
        where = _where(options, phases)
        if named:
            for digest in options["digests"]:
                yield upkeep.look_up(ledger, digest)
            for key in options["key"]:
                record, _ = find(ledger, settings.the_secret(), normal_key(key))
                if record is None:
                    raise CommandError("no record of the key that was given; is SECRET the one that it was sent with?")
                yield record
        elif options["all"] or where != Filter(phases=phases):
            yield from upkeep.find(ledger, where)
        else:
            raise CommandError("which? Give digests, --key, --provider, --label, --age, or --all")

    def _tell(self, changes: Iterable[upkeep.Change]) -> None:
        missed = total = 0
        for change in changes:
            total += 1
            missed += change.after is None
            became = change.why if change.after is None else change.after.name.lower()
            self.stdout.write(f"{_line(change.record)}  -> {became}")
        if not total:
            self.stdout.write("nothing to do")
        if missed:
            raise CommandError(f"{missed} of {total} not changed")


def _where(options: dict[str, Any], phases: frozenset[Phase]) -> Filter:
    return Filter(phases=phases, provider=options["provider"], label=options["label"], older_than=options["age"])


def _line(record: Record) -> str:
    last = upkeep.moment(record.last_armed if record.last_armed is not None else record.first_seen)
    parts = [record.key.hex()[:12], record.phase.name.lower(), last, record.provider or "-", record.label or "-"]
    return f"{'  '.join(parts)}  {record.attempts} attempt(s)"


def _named(ledger: Ledger) -> str:
    if isinstance(ledger, DatabaseLedger):
        kind, place = where_is(ledger.alias)
        return f"in the database {ledger.alias!r}" + (f", as the file {place}" if kind == "sqlite" else f" ({kind})")
    return type(ledger).__name__
