"""Profiles are found by name, in files, and in other packages."""

from __future__ import annotations

import os
import pickle
from importlib import metadata
from pathlib import Path

import pytest

from retrypolicy import plugins
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.http.pushback import Hint
from retrypolicy.outcome import Effect, Stage
from retrypolicy.providers import Answers, Kept, KeyPlacement, Provider, Template, load, loader, names
from retrypolicy.rules import Rule

ANYMAIL = {
    "brevo", "mailersend", "mailgun", "mailjet", "mailtrap", "mandrill", "postal", "postmark", "resend", "scaleway",
    "sendgrid", "sparkpost", "unisender_go", "amazon_ses",
}  # fmt: skip


def test_names() -> None:
    assert set(names()) == ANYMAIL | {"idempotency-key", "stripe"}


@pytest.mark.parametrize("name", names())
def test_a_profile_is_called_as_its_file_and_is_a_value(name: str) -> None:
    provider = load(name)
    assert provider.name == name
    assert load(name) is provider
    assert load(provider) is provider
    scope = {"Effect": Effect, "Stage": Stage, "Hint": Hint, "Rule": Rule, "Answers": Answers, "Kept": Kept}
    scope |= {"KeyPlacement": KeyPlacement, "Provider": Provider, "Template": Template}
    assert eval(repr(provider), scope) == provider
    assert pickle.loads(pickle.dumps(provider)) == provider
    assert len({provider, pickle.loads(pickle.dumps(provider))}) == 1


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'sendgird'.*mailgun.*sendgrid"):
        load("sendgird")


@pytest.mark.parametrize("name", ["", "../providers/resend", "resend.py", "Resend"])
def test_other_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no provider is called"):
        load(name)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nhosts = ["api.example.com"]\n[key]\nheader = "X-Key"\nwindow = 60\n')
    provider = load(path)
    assert provider.honours("POST", "api.example.com", "/")
    assert load(str(path)) is provider
    path.write_text('name = "mine"\nquiet = 5\n')
    assert load(path) == Provider(name="mine", quiet=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not a TOML file"),
        ('name = "x"\nhots = []', r"Provider\.hots: .* hosts"),
        ('name = "x"\nhosts = ["https://example.com"]', r"Provider\.hosts"),
        ('name = "x"\nhosts = ["example.com:443"]', r"Provider\.hosts"),
        ('name = "X y"', r"Provider\.name"),
        ("hosts = []", "name"),
        ('name = "x"\nquiet = -1', r"Provider\.quiet"),
        ('name = "x"\nmetadata = "yes"', r"Provider\.metadata"),
        ('name = "x"\nsecret = [1]', r"Provider\.secret"),
        ('name = "x"\nkey = "header"', "not a profile"),
        ('name = "x"\nrules = [1]', "not a profile"),
        ('name = "x"\n[[rules]]\nstatus = 400\neffect = "perhaps"', "effect.*perhaps"),
        ('name = "x"\n[[rules]]\nstatus = 400', "no verdict"),
        ('name = "x"\n[[hints]]\nheader = "a"\nunit = "days"', r"Hint\.unit"),
        ('name = "x"\n[answers.keep]\nid = { at = "/id", form = ".*" }', r"Kept\.form"),
        ('name = "x"\n[answers.keep]\nid = 3', "not a profile"),
        ('name = "x"\n[[answers.replay]]\nbody = "{id}"', r"Answers\.replay"),
    ],
)
def test_a_bad_file_ends_in_one_line_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    huge = tmp_path / "huge.toml"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 100 << 20)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, said in ((folder, "read"), (huge, "at most"), (binary, "TOML"), (tmp_path / "none.toml", "read")):
        with pytest.raises(ConfigurationError, match=said):
            load(path)


PLUGIN = Provider(name="plugin")
NO_PLUGIN = "text"


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "tests_plugin_of_a_provider"
    monkeypatch.setitem(__import__("sys").modules, module, __import__("types").SimpleNamespace(GOOD=PLUGIN, BAD="text"))
    entries = [
        metadata.EntryPoint(name=name, value=f"{module}:{value}", group="retrypolicy.providers")
        for name, value in (("plugin", "GOOD"), ("bad", "BAD"), ("gone", "GONE"), ("resend", "GOOD"))
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: entries if group == "retrypolicy.providers" else [])
    plugins._others.cache_clear()
    loader._named.cache_clear()
    yield
    monkeypatch.undo()
    plugins._others.cache_clear()
    loader._named.cache_clear()


@pytest.mark.usefixtures("_plugins")
def test_profiles_of_other_packages() -> None:
    assert load("plugin") is PLUGIN
    assert "plugin" in names()
    assert load("resend").hosts == ("api.resend.com",)  # ours can't be taken over
    with pytest.raises(ConfigurationError, match="is a str, not a Provider"):
        load("bad")
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        load("gone")


def test_kinds_are_checked() -> None:
    with pytest.raises(PolicyError, match=r"Provider\.rules"):
        Provider(name="x", rules=["429"])
    with pytest.raises(PolicyError, match=r"Provider\.key"):
        Provider(name="x", key="header")


def test_own_profiles_hold_no_secret_but_its_place() -> None:
    assert load("mandrill").secret == ("/key",)
    assert load("unisender_go").secret == ("/api_key",)
