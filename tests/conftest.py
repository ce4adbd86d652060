"""What every test gets: a clean environment, hypothesis profiles, and Django settings for those that need them."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator

import django
import hypothesis
import pytest
from django.conf import settings

# Chosen by HYPOTHESIS_PROFILE or --hypothesis-profile. Random in each of them: where CI is set, hypothesis' own profile
# would try the same examples in every run. State machines scale along (tests/scaling.py).
hypothesis.settings.register_profile("dev", max_examples=50, deadline=None, derandomize=False)
hypothesis.settings.register_profile("ci", max_examples=100, deadline=None, derandomize=False, print_blob=True)
hypothesis.settings.register_profile("deep", max_examples=3_000, deadline=None, derandomize=False, print_blob=True)
# A mutant is caught by any example: nobody wants the simplest one.
hypothesis.settings.register_profile(
    "mutation",
    max_examples=50,
    deadline=None,
    derandomize=False,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))

if not settings.configured:
    settings.configure(
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "anymail",
            "django_tasks_db",
            "retrypolicy.django",
            "retrypolicy.anymail",
            "retrypolicy.queues.django_tasks",
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        TASKS={
            "default": {"BACKEND": "retrypolicy.queues.django_tasks.DatabaseBackend"},
            "stock": {"BACKEND": "django_tasks_db.DatabaseBackend"},
            "immediate": {"BACKEND": "retrypolicy.queues.django_tasks.ImmediateBackend"},
            "dummy": {"BACKEND": "retrypolicy.queues.django_tasks.DummyBackend"},
        },
        SECRET_KEY="a key for tests only",
        DEFAULT_FROM_EMAIL="shop@example.com",
        USE_TZ=True,
    )
    django.setup()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test: neither ours, nor a proxy between it and the loopback."""
    for name in list(os.environ):
        if name.upper().startswith("RETRYPOLICY_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django tasks of other tests are no concern of the system checks."""
    from retrypolicy.queues.django_tasks.tasks import policies

    for path in list(policies):
        monkeypatch.delitem(policies, path)


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """What exists already is no concern of the garbage collector's: each collection takes but a moment."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def leaks_of_others(small_heap: None) -> Iterator[None]:
    """CPython forgets to close an SSLSocket that is reset before the handshake: it is collected here, unheard."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
