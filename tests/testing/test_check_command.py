"""`retrypolicy check`: files in, stories out, exit codes for CI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retrypolicy.cli import main

POLICIES = """
[policies.good]
extends = "web"

[policies.recipe]
idempotent_methods = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY", "POST"]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "policies.toml"
    path.write_text(POLICIES)
    return str(path)


def run(*arguments: str) -> int:
    return main(["check", "--examples", "30", *arguments])


def test_nothing_found(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--policy", "good", "--provider", "resend") == 0
    assert capsys.readouterr().out.startswith("good with resend: nothing found in ")


def test_something_found(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file) == 1
    out = capsys.readouterr().out
    assert "good: nothing found in " in out
    assert "recipe: 2 found in " in out
    assert "duplicate: a call can take effect twice (accepts duplicates)" in out
    assert "To do: take POST out of idempotent_methods" in out
    assert "\nRP03 accepts-duplicates (idempotent_methods): POST" in out


def test_what_is_ignored(file: str) -> None:
    assert run(file, "--ignore", "duplicate") == 1
    assert run(file, "--ignore", "duplicate", "--ignore", "RP03") == 0


def test_as_json(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    good, recipe = document["policies"]
    assert document["clean"] is False
    assert (good["policy"], good["findings"], good["lint"]) == ("good", [], [])
    [finding], [looks] = recipe["findings"], recipe["lint"]
    assert (finding["law"], finding["attempts"], looks["id"]) == ("duplicate", 2, "RP03")
    assert finding["story"][0] == "POST, no key, no ledger"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{file}", "--policy", "nobody"], "has no 'nobody'; it has good, recipe"),
        (["{file}", "--provider", "nobody"], "no provider is called 'nobody'"),
        (["{file}", "--ignore", "nothing"], "--ignore: 'nothing' is not allowed"),
        (["{file}.txt"], "must end in .toml or .json"),
        (["no-such-file.toml"], "no-such-file.toml"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*(argument.format(file=file) for argument in arguments)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("retrypolicy: ")
    assert said in line


def test_an_empty_file_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.json"
    path.write_text('{"policies": {}}')
    assert run(str(path)) == 2
    assert "there is no policy in it" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_number_that_is_none(number: str, file: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", file, "--examples", number])
    assert stopped.value.code == 2


def test_without_hypothesis(file: str) -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None; from retrypolicy.cli import main; "
        f"sys.exit(main(['check', {file!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "pip install 'retrypolicy[hypothesis]'" in line
