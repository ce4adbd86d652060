"""Each check says its id for settings that are wrong, and nothing for those that are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
import pytest
from django.core import mail
from django.core.checks import run_checks
from django.db import connections
from django.test import override_settings
from django.utils.module_loading import import_string

from retrypolicy import Guard, RetryPolicy
from retrypolicy.anymail import RetryMixin
from retrypolicy.django.mailers import Mailer
from retrypolicy.guard import MemoryLedger

ROOT = Path(__file__).parents[2]
RESEND = "retrypolicy.anymail.backends.resend.EmailBackend"


def ids(**settings: Any) -> set[str]:
    with override_settings(**settings):
        found = run_checks(tags=["retrypolicy"])
    assert all(message.hint for message in found)
    return {str(message.id).removeprefix("retrypolicy.") for message in found}


def mailer(**options: Any) -> dict[str, Any]:
    return {"MAILERS": {"default": {"BACKEND": RESEND, "OPTIONS": options}}}


def test_nothing_to_say() -> None:
    assert ids() == set()
    assert ids(RETRYPOLICY={"POLICY": "web", "LEDGER": "redis://127.0.0.1:1/0", "KEYS": "content"}) == set()


@pytest.mark.parametrize(
    ("expected", "setting"),
    [
        ("E001", ["LEDGER"]),
        ("E001", {"LEGDER": "default"}),
        ("E001", {"KEYS": "contents"}),
        ("E001", {"SECRET": ""}),
        ("E001", {"RELEASE_AFTER": {"sparkpost": 1}}),
        ("E002", {"POLICY": "wbe"}),
        ("E002", {"POLICIES": ["web"]}),
        ("E002", {"POLICIES": {"mail": {"max_attempts": 0}}}),
        ("E003", {"LEDGER": "nowhere"}),
        ("E003", {"LEDGER": "ftp://example.com"}),
        ("E008", {"FAILOVER": []}),
        ("E008", {"FAILOVER": "retrypolicy.anymail.backends.resend.EmailBackend"}),
        ("E008", {"FAILOVER": ["anymail.backends.resend.EmailBackend"]}),
        ("E008", {"FAILOVER": [{"OPTIONS": {}}]}),
        ("E008", {"FAILOVER": ["nowhere.EmailBackend"]}),
        ("E004", {"FAILOVER": [{"BACKEND": RESEND, "OPTIONS": {"retry_policy": "wbe"}}]}),
        ("E004", {"FAILOVER": [RESEND, {"BACKEND": RESEND, "OPTIONS": {"retry_provider": "reesend"}}]}),
        ("W001", {"POLICY": RetryPolicy(idempotent_methods={"GET", "POST"})}),
        ("W001", {"POLICIES": {"mail": RetryPolicy(guard=Guard(on_unknown="resend"))}}),
        ("W002", {"POLICY": RetryPolicy(name="web-mail", max_wait=50.0, total_timeout=20.0)}),
        ("W003", {"POLICY": RetryPolicy(guard=Guard(lease=5.0), total_timeout=60.0)}),
        ("W003", {"POLICIES": {"mail": RetryPolicy(guard=Guard(lease=5.0))}}),
        ("W007", {"LEDGER": MemoryLedger()}),
    ],
)
def test_the_setting(expected: str, setting: Any) -> None:
    assert expected in ids(RETRYPOLICY=setting)


def test_a_policy_as_data_is_a_policy() -> None:
    assert ids(RETRYPOLICY={"POLICY": "mail", "POLICIES": {"mail": {"extends": "web", "max_attempts": 2}}}) == set()


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("E004", {"retry_policy": "wbe"}),
        ("E004", {"retry_provider": "reesend"}),
        ("E004", {"retry_ledger": "nowhere"}),
        ("E004", {"retry_polciy": "web"}),
        ("W012", {"retry_ledger": "memory:mails"}),
        ("I001", {"retry_policy": "web"}),
    ],
    ids=str,
)
def test_the_options_of_a_mailer(expected: str, options: dict[str, Any]) -> None:
    assert expected in ids(**mailer(**options))


def test_email_backend() -> None:
    if django.VERSION >= (6, 1):
        return  # EMAIL_BACKEND goes when MAILERS is there; both are read the same way
    assert ids(EMAIL_BACKEND=RESEND) == {"I001"}


def test_anymails_own_backend() -> None:
    plain = {"MAILERS": {"default": {"BACKEND": "anymail.backends.resend.EmailBackend"}}}
    assert ids(**plain) == set()
    assert ids(**plain, RETRYPOLICY={"POLICY": "web"}) == {"W005"}


@pytest.mark.parametrize(
    ("name", "ours"), [("test", None), ("console", None), ("sendinblue", "brevo"), ("postal", "postal")]
)
def test_what_is_advised_in_the_place_of_anymails_own_backend(name: str, ours: str | None) -> None:
    found = Mailer("EMAIL_BACKEND", f"anymail.backends.{name}.EmailBackend", {}).counterpart
    assert found == (None if ours is None else f"retrypolicy.anymail.backends.{ours}.EmailBackend")
    assert found is None or issubclass(import_string(found), RetryMixin)


def test_a_backend_that_does_not_exist() -> None:
    assert "E004" in ids(MAILERS={"default": {"BACKEND": "retrypolicy.anymail.backends.reesend.EmailBackend"}})


def test_one_ledger_for_all(project: dict[str, Any], ledger: MemoryLedger) -> None:
    assert "W012" not in ids(**mailer(retry_ledger=ledger), RETRYPOLICY=project)
    assert "I001" not in ids(**mailer(retry_ledger="memory:mails"))


@pytest.mark.parametrize(
    ("expected", "options", "setting"),
    [
        (set(), {"backends": [RESEND]}, None),
        (set(), {}, [RESEND]),
        ({"E008"}, {}, None),
        ({"E008"}, {"backends": ["nowhere.EmailBackend"]}, [RESEND]),
        ({"E004"}, {"backends": [{"BACKEND": RESEND, "OPTIONS": {"retry_policy": "wbe"}}]}, None),
    ],
    ids=str,
)
def test_failover(expected: set[str], options: dict[str, Any], setting: Any, project: dict[str, Any]) -> None:
    sender = {"default": {"BACKEND": "retrypolicy.anymail.failover.EmailBackend", "OPTIONS": options}}
    assert ids(MAILERS=sender, RETRYPOLICY={**project, "FAILOVER": setting}) - {"W007"} == expected


def test_botocores_retries() -> None:
    ses = {"MAILERS": {"default": {"BACKEND": "retrypolicy.anymail.backends.amazon_ses.EmailBackend"}}}
    params = {"config": {"retries": {"total_max_attempts": 5}}}
    assert "W006" in ids(**ses, ANYMAIL={"AMAZON_SES_CLIENT_PARAMS": params})
    assert "W006" not in ids(**ses)


def test_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
    assert ids() == {"W009"}
    monkeypatch.setenv("RETRYPOLICY_MODE", "observed")
    assert ids() == {"E007"}


def test_tests_that_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    assert "W008" in ids(**mailer())


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    """A Django database in a SQLite file."""
    path = tmp_path / "shop.sqlite3"
    connections.settings["shop"] = {**connections.settings["default"], "NAME": str(path)}
    yield path
    connections["shop"].close()
    del connections["shop"]
    del connections.settings["shop"]


def test_a_ledger_in_a_database_file(shop: Path) -> None:
    assert ids(RETRYPOLICY={"LEDGER": "shop"}) == {"I002"}
    shop.touch()
    assert "E006" in ids(RETRYPOLICY={"LEDGER": f"sqlite:///{shop}"})


def test_every_id_is_in_the_docs() -> None:
    import re

    sources = [ROOT / f"retrypolicy/{room}/checks.py" for room in ("django", "anymail")]
    made = set(re.findall(r'"(?:retrypolicy\.)?([EWI]\d{3})"', "".join(path.read_text("utf-8") for path in sources)))
    page = (ROOT / "docs/django.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `retrypolicy\.([EWI]\d{3})`", page, re.MULTILINE))
    assert made == listed


def test_checks_can_be_told_apart_by_their_tag() -> None:
    from django.core.checks.registry import registry

    assert "retrypolicy" in registry.tags_available()
    names: list[Callable[..., Any]] = [check for check in registry.get_checks() if "retrypolicy" in check.tags]
    # One each, though the apps were set up more than once.
    assert len(names) == len({(check.__module__, check.__name__) for check in names}) >= 6
