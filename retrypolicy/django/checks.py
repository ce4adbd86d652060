"""System checks: what the settings get wrong, said when Django starts. Each has an id, a hint and docs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.module_loading import import_string

from retrypolicy.config import lint
from retrypolicy.django import settings
from retrypolicy.django.ledger import SUFFIX, TABLE, DatabaseLedger, testing, where_is
from retrypolicy.django.mailers import Mailer, mailers
from retrypolicy.django.models import OutboxMessage
from retrypolicy.engine import MODE_VARIABLE, MODES
from retrypolicy.errors import RetryPolicyError
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import load

TAG = "retrypolicy"
DOCS = "See docs/django.md."
OUTBOX_DOCS = "See docs/outbox.md."

_KINDS = {"E": checks.Error, "W": checks.Warning, "I": checks.Info}
_LINT = {"RP03": "W001", "RP05": "W003", "RP06": "W006"}
"""Findings about a policy that have an id of their own here; all others share W002."""

Found = Iterator[checks.CheckMessage]


def _say(number: str, text: str, hint: str) -> checks.CheckMessage:
    return _KINDS[number[0]](text, hint=hint, id=f"retrypolicy.{number}")


def register_all() -> None:
    """Called when the app is ready; again, if a test changes INSTALLED_APPS."""
    for check in (check_settings, check_policies, check_ledger, check_mailers, check_outbox):
        checks.register(_collected(check), TAG)
    for check in (check_database, check_outbox_table):
        checks.register(_collected(check), TAG, checks.Tags.database)


@functools.cache  # the registry knows a check by its identity
def _collected(check: Callable[..., Found]) -> Any:
    @functools.wraps(check)
    def run(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
        return list(check(**kwargs))

    return run


def check_settings(**kwargs: Any) -> Found:
    """The dict itself, and the environment."""
    try:
        settings.setting("POLICY")
        settings.keys()
        settings.the_secret()
    except RetryPolicyError as error:
        yield _say("E001", str(error), f"Correct it in the settings. {DOCS}")
        return
    try:
        settings.release_after()
    except RetryPolicyError as error:
        yield _say("E001", str(error), f"Name providers whose events carry metadata, and enough minutes. {DOCS}")
    mode = os.environ.get(MODE_VARIABLE, "").strip().lower()
    if mode and mode not in MODES:
        yield _say("E007", f"{MODE_VARIABLE}={mode} is unknown", f"Use one of {', '.join(MODES)}.")
    elif mode in ("off", "observe") and not testing():
        yield _say("W009", f"{MODE_VARIABLE}={mode}: nothing is guarded", "Unset it when you have seen enough.")


def check_policies(**kwargs: Any) -> Found:
    """Every policy that the settings name."""
    try:
        named = dict(settings.policies())
        default = settings.policy()
    except RetryPolicyError as error:
        yield _say("E002", str(error), f"Correct POLICY or POLICIES. {DOCS}")
        return
    given: Sequence[str] = list(settings.setting("POLICIES") or ())
    yield from _linted("RETRYPOLICY['POLICY']", default)
    for name in given:
        if named[name] is not default:
            yield from _linted(f"RETRYPOLICY['POLICIES'][{name!r}]", named[name])


def _linted(where: str, policy: RetryPolicy, provider: str | None = None) -> Found:
    for finding in lint(policy, provider):
        number = _LINT.get(finding.id, "W002")
        yield _say(number, f"{where}: {finding.message} ({finding.id} {finding.field})", f"{finding.hint}.")
    lease = policy.guard.lease
    timeout = _request_timeout()
    limits = [t for t in (policy.attempt_timeout, policy.total_timeout, timeout) if t is not None]
    if lease is not None and limits and lease < min(limits):
        yield _say(
            "W003",
            f"{where}: an attempt may take {min(limits):g} s, and its key is given up after {lease:g} s",
            "Leave Guard.lease to None, or make it longer than the request's own time limits.",
        )


def _request_timeout() -> float | None:
    """Anymail's time limit for one request; a pair counts as its longer part."""
    anymail = getattr(django_settings, "ANYMAIL", None)
    value = anymail.get("REQUESTS_TIMEOUT", 30) if isinstance(anymail, Mapping) else 30
    if isinstance(value, tuple):
        value = max((part for part in value if isinstance(part, (int, float))), default=None)
    return float(value) if isinstance(value, (int, float)) else None


def check_ledger(**kwargs: Any) -> Found:
    """The ledger, as far as it can be judged without opening a database."""
    try:
        given = settings.setting("LEDGER")
        ledger = settings.ledger()
    except RetryPolicyError as error:
        yield _say("E003", str(error), f"Correct LEDGER. {DOCS}")
        return
    if ledger is None:
        if any(mailer.guarded and "retry_ledger" not in mailer.options for mailer in mailers()):
            yield _say(
                "I001",
                "there is no ledger: a crash between sending and answering is not remembered",
                "Set RETRYPOLICY['LEDGER'], for instance to 'default'.",
            )
        return
    if isinstance(ledger, DatabaseLedger):
        kind, place = where_is(ledger.alias)
        if kind == "sqlite":
            yield _say(
                "I002",
                f"the ledger of the database {ledger.alias!r} is a file of its own: {place}",
                "A second connection to the same SQLite file would wait for the request's transaction. Back it up "
                "and delete it together with the database.",
            )
        return
    if not getattr(ledger, "durable", True) and not testing() and not django_settings.DEBUG:
        yield _say("W007", "the ledger forgets all sends when the process ends", "Use a durable one in production.")
    if isinstance(given, str) and given.startswith("sqlite:"):
        file = os.path.realpath(given.partition(":///")[2].partition("?")[0])
        for alias in connections:
            found = connections[alias]
            if found.vendor == "sqlite" and os.path.realpath(str(found.settings_dict["NAME"])) == file:
                yield _say(
                    "E006",
                    f"the ledger is in the file of the database {alias!r}: it would wait for that one's transactions",
                    f"Give it a file of its own, or use the alias {alias!r}, which takes {file}{SUFFIX}.",
                )


def check_mailers(**kwargs: Any) -> Found:
    """Every way to send mail."""
    for mailer in mailers():
        yield from check_mailer(mailer)
        if "retry_ledger" in mailer.options:
            yield from _other_ledger(mailer)
        if mailer.counterpart is not None and getattr(django_settings, "RETRYPOLICY", None):
            said = f"{mailer.where} is Anymail's own backend: nothing is guarded"
            yield _say("W005", said, f"Use {mailer.counterpart}.")
        if mailer.backend.startswith("retrypolicy.anymail.backends.amazon_ses"):
            yield from _stacked(mailer)
        if testing() and mailer.ours:
            yield _say(
                "W008",
                f"{mailer.where} sends and sleeps while tests run",
                "Use Django's locmem backend, or retrypolicy.testing.deactivated().",
            )


def check_mailer(mailer: Mailer) -> Found:
    """One backend and its options."""
    if mailer.ours:
        try:
            import_string(mailer.backend)
        except ImportError as error:
            yield _say("E004", f"{mailer.where}: {mailer.backend} can't be imported: {error}", f"Correct it. {DOCS}")
    options = mailer.options
    hint = f"Correct the OPTIONS. {DOCS}"
    unknown = [
        name
        for name in options
        if name.startswith("retry_") and name not in ("retry_policy", "retry_ledger", "retry_provider")
    ]
    if unknown:
        yield _say("E004", f"{mailer.where}: unknown option {unknown[0]!r}", hint)
    try:
        if "retry_ledger" in options:
            settings.ledger(options["retry_ledger"])
        provider = options.get("retry_provider")
        if provider is not None:
            load(provider)
        if "retry_policy" in options:
            policy = settings.policy(options["retry_policy"])
            yield from _linted(f"{mailer.where}['OPTIONS']['retry_policy']", policy, provider)
    except RetryPolicyError as error:
        yield _say("E004", f"{mailer.where}: {error}", hint)


def _other_ledger(mailer: Mailer) -> Found:
    try:
        same = settings.ledger(mailer.options["retry_ledger"]) is settings.ledger()
    except RetryPolicyError:
        return  # E003 or E004 says so
    if not same:
        yield _say(
            "W012",
            f"{mailer.where} has another ledger than RETRYPOLICY['LEDGER'] names",
            "Webhooks, the admin and manage.py retrypolicy look into LEDGER only: what this mailer holds stays held. "
            "Use one ledger for all.",
        )


def _stacked(mailer: Mailer) -> Found:
    anymail = getattr(django_settings, "ANYMAIL", None)
    params = mailer.options.get("client_params") or (
        anymail.get("AMAZON_SES_CLIENT_PARAMS") if isinstance(anymail, Mapping) else None
    )
    config = params.get("config") if isinstance(params, Mapping) else None
    if isinstance(config, Mapping) and config.get("retries"):
        yield _say(
            "W006",
            "AMAZON_SES_CLIENT_PARAMS has retries of botocore's; they would be stacked on the policy, and are left out",
            "Take 'retries' out of the config; the policy says how often to try.",
        )


def check_outbox(**kwargs: Any) -> Found:
    """The outbox, if the settings name it."""
    try:
        if settings.setting("OUTBOX") is None:
            return
        settings.outbox_policy()
        settings.outbox_hand_over()
        ledger = settings.ledger()
    except RetryPolicyError as error:
        yield _say("E009", str(error), f"Correct OUTBOX. {OUTBOX_DOCS}")
        return
    if ledger is None:
        yield _say(
            "W010",
            "the outbox has no ledger: a message whose sender dies may be sent twice",
            f"Set RETRYPOLICY['LEDGER'], for instance to 'default'. {OUTBOX_DOCS}",
        )
    for mailer in mailers():
        if not (mailer.guarded or testing()):
            yield _say(
                "W011",
                f"{mailer.where} is not guarded: what the outbox sends through it may be sent twice",
                f"Use a backend with RetryMixin, such as those in retrypolicy.anymail.backends. {OUTBOX_DOCS}",
            )


def check_outbox_table(*, databases: Sequence[str] | None = None, **kwargs: Any) -> Found:
    """The outbox's table, if the settings name the outbox: with `check --database` and with `migrate` only."""
    try:
        if settings.setting("OUTBOX") is None:
            return
    except RetryPolicyError:
        return  # E001 says so
    alias = router.db_for_write(OutboxMessage)
    if alias in (databases or ()):
        table = OutboxMessage._meta.db_table
        if table not in connections[alias].introspection.table_names():
            yield _say("W014", f"the outbox's table {table} is not in the database {alias!r}", "Run manage.py migrate.")


def check_database(*, databases: Sequence[str] | None = None, **kwargs: Any) -> Found:
    """The ledger as it is: with `check --database` and with `migrate` only."""
    try:
        ledger = settings.ledger()
    except RetryPolicyError:
        return  # E003 says so
    if not isinstance(ledger, DatabaseLedger) or ledger.alias not in (databases or ()):
        return
    kind, _ = where_is(ledger.alias)
    if kind == "postgresql" and TABLE not in connections[ledger.alias].introspection.table_names():
        yield _say(
            "W013",
            f"the ledger's table {TABLE} is not in the database {ledger.alias!r}",
            "Run manage.py migrate" + ("." if ledger.alias == DEFAULT_DB_ALIAS else f" --database {ledger.alias}."),
        )
        return
    if not testing():
        try:
            problems = ledger.problems()
        except RetryPolicyError as error:
            problems = [str(error)]
        for problem in problems:
            yield _say("W007", f"the ledger can't promise to remember: {problem}", "Have it mended. " + DOCS)
