"""The whole demo, as a user runs it. Ground truth is the server's book."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

EML = """\
From: Kim <kim@example.com>
To: Sam <sam@example.com>
Subject: Note {0}

This is note {0}.
"""


def retrypolicy(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "retrypolicy"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )


def played(*arguments: str) -> dict[str, Any]:
    done = retrypolicy("demo", "--json", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""  # no progress bar where there is no terminal
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def check(document: dict[str, Any], messages: int) -> None:
    """What holds on every day."""
    assert document["messages"] == messages
    for way in document["ways"].values():
        for api in ("mandrill", "resend"):
            row = way[api]
            assert row["once"] + row["more"] + row["never"] == messages
            assert way["both"]["requests"] == way["mandrill"]["requests"] + way["resend"]["requests"]
            assert messages <= row["received"] + row["never"]
            assert row["received"] <= row["requests"]
        assert way["kills"] == 2
    plain, recipe, ours = (document["ways"][name] for name in ("plain", "recipe", "retrypolicy"))
    assert plain["both"]["more"] <= 2  # what a queue delivers again after a kill, and nothing else
    assert plain["both"]["requests"] == 2 * messages + 2
    assert recipe["both"]["more"] >= plain["both"]["more"]
    assert ours["both"]["more"] == 0
    assert ours["both"]["held"] == len(document["held"])
    assert ours["resend"]["held"] == 0  # it honours keys: whatever is unknown is sent again
    assert document["lost"] == []
    assert document["good"] is True


def test_the_main_job(tmp_path: Path) -> None:
    """On the default day, with enough messages for every kind of trouble but two."""
    document = played("--limit", "14", "--keep", str(tmp_path / "kept"))
    check(document, 14)
    assert document["seconds"] < 60
    ways = document["ways"]
    assert ways["recipe"]["both"]["more"] > 2  # more than what the kills account for
    assert ways["plain"]["both"]["never"] > 0
    assert ways["plain"]["both"]["more"] == 2
    # The message whose sender was killed: accepted once at both, held where no key is honoured.
    killed = next(one for one in document["held"] if one["message"] == 8)
    assert (killed["api"], killed["accepted"], killed["label"]) == (
        "mandrill", 1, "Nightly export finished with 3 warnings",
    )  # fmt: skip
    assert (tmp_path / "kept" / "ledger.db").exists()
    again = retrypolicy("demo", "--keep", str(tmp_path / "kept"))
    assert (again.returncode, again.stdout) == (2, "")
    assert "earlier demo" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_nothing_goes_out_twice_on_other_days(tmp_path: Path, seed: int) -> None:
    check(played("--seed", str(seed), "--limit", "6", "--keep", str(tmp_path)), 6)


def test_a_single_message_from_a_folder_and_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    folder.mkdir()
    (folder / "one.eml").write_text(EML.format(1))
    done = retrypolicy("demo", "--messages", str(folder), "--keep", str(tmp_path / "kept it"))
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "1 message through two APIs" in text
    assert "accepted Note 1" in text  # held, and what the API's log says of it
    assert f"'sqlite:///{tmp_path}/kept%20it/ledger.db'" in text or f"sqlite:///{tmp_path}/kept%20it/ledger.db" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), ("", "empty"), ("Dear diary,\n", "not a mailbox")]
)
def test_a_file_without_messages_is_one_line(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "box"
    if content is not None:
        path.write_text(content)
    done = retrypolicy("demo", "--messages", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("retrypolicy demo: ")
    assert str(path) in done.stderr
    assert reason in done.stderr


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = retrypolicy("demo", "--keep", str(tmp_path / "file" / "folder"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("package", ["rich", "anymail", "django"])
def test_a_missing_package_is_one_line(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from retrypolicy.cli import main; sys.exit(main(['demo']))"
    done = retrypolicy(code=code)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert package in done.stderr
    assert "pip install 'retrypolicy[demo]'" in done.stderr


@pytest.mark.parametrize("arguments", [["demo", "--limit", "0"], ["demo", "--limit", "x"], ["nonsense"], []])
def test_bad_arguments_are_a_usage_error(arguments: list[str]) -> None:
    done = retrypolicy(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: retrypolicy")


def test_help_loads_no_subcommand() -> None:
    code = (
        "import sys\nfrom retrypolicy.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'rich', 'django', 'requests', 'retrypolicy.demo.command'} & set(sys.modules)"
    )
    done = retrypolicy(code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    """As in `retrypolicy ... | head -1`."""
    code = (
        "import sys, types\nfrom retrypolicy import cli\n"
        "def run(arguments):\n    print('x' * 1_000_000)\n    return 0\n"
        "talk = types.ModuleType('talk')\n"
        "talk.add_parser = lambda subparsers: subparsers.add_parser('talk').set_defaults(run=run)\n"
        "sys.modules['talk'] = talk\ncli.COMMANDS['talk'] = ('talk', 'talk')\nsys.exit(cli.main(['talk']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
