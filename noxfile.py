"""What a contributor and CI run: `nox` runs the default sessions, `nox -l` lists all of them."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "types", "contracts", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


def show_all_interpreters() -> None:
    """Put every interpreter of this machine within nox's reach."""
    # nox may run from a virtual environment that is not on the path, and may be the only Python there is.
    os.environ["PATH"] += os.pathsep + os.path.dirname(sys.executable)
    if shutil.which("pyenv"):
        # pyenv's commands exist for all its versions, but fail for those that are not selected.
        versions = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout.split()
        selected = subprocess.run(["pyenv", "version-name"], capture_output=True, text=True).stdout.strip()
        os.environ["PYENV_VERSION"] = ":".join([*selected.split(":"), *versions])


def works(version: str) -> bool:
    """Is there a Python of this version, and does it start?"""
    command = shutil.which(f"python{version}")
    return command is not None and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0


show_all_interpreters()
PYTHONS = [version for version in dict.fromkeys(["3.11", "3.12", "3.13", OURS]) if works(version)]
if not PYTHONS:
    raise SystemExit("noxfile: no Python 3.11 or newer was found")
NEWEST = PYTHONS[-1]


def group(*names: str) -> tuple[str, ...]:
    """The requirements of these dependency groups of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def django(python: str) -> str:
    """The Django to test with: the long-term one on 3.11, which is too old for the newest."""
    return "Django~=5.2.0" if python == "3.11" else "Django~=6.1.0"


@nox.session(python=False)
def demo(session: nox.Session) -> None:
    """The main job, as a stranger runs it: from a wheel, in an environment of its own."""
    place = session.create_tmp()
    session.run(sys.executable, "-m", "venv", "--clear", place)
    session.run(f"{place}/bin/pip", "install", "-q", ".[demo]")
    session.run(f"{place}/bin/retrypolicy", "demo", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on every interpreter found; slow ones and big tables on the newest only. Those in between leave out
    the property tests too, the queues, which are there in the same releases on the newest, the testing kit, the demo,
    and the docs' examples.
    """
    session.install("-e", ".", *group("test"), django(str(session.python)))
    quick = ["-m", "not slow and not table"]
    if session.python != PYTHONS[0]:
        rooms = ("queues", "testing", "demo", "docs")
        quick = ["-m", "not slow and not table and not hypothesis", *(f"--ignore=tests/{room}" for room in rooms)]
    chosen = [] if session.python == NEWEST or session.posargs else quick
    # Half of their time tests wait, for a server that stalls or a lock.
    # And they start hundreds of processes, each of which would compile all of it where no bytecode may be kept.
    kept = {"PYTHONDONTWRITEBYTECODE": ""}
    session.run("pytest", "-q", "-n", str(2 * (os.cpu_count() or 1)), *chosen, *session.posargs, env=kept)


@nox.session(python=NEWEST)
def coverage(session: nox.Session) -> None:
    """The tests once more, measured; fails below the floor."""
    session.install("-e", ".", *group("coverage"), django(NEWEST))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-q", "-n", "auto", *session.posargs)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session(python=OURS)
def lint(session: nox.Session) -> None:
    """Style and common mistakes (`nox -s lint -- --fix` mends what it can)."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if session.posargs else ["--check"]))


@nox.session(python=OURS)
def types(session: nox.Session) -> None:
    """Mypy in strict mode, then pyright."""
    session.install("-e", ".", *group("types"), django(OURS))
    session.run("mypy")
    session.run("pyright")


@nox.session(python=OURS)
def contracts(session: nox.Session) -> None:
    """Who may import whom."""
    session.install(*group("contracts"))
    session.run("lint-imports", "--no-cache")


@nox.session(python=OURS)
def docs(session: nox.Session) -> None:
    """The pages, with every warning an error."""
    session.install("-e", ".", *group("docs"))
    session.run("sphinx-build", "-W", "-n", "--keep-going", "-q", "docs", "docs/_build/html", *session.posargs)


@nox.session(python=PYTHONS[0])
@nox.parametrize("anymail", ["13.0", "14.0"])
def anymail(session: nox.Session, anymail: str) -> None:
    """The mail tests with older releases of Anymail."""
    session.install("-e", ".", *group("test"), django(str(session.python)), f"django-anymail~={anymail}")
    session.run("pytest", "-q", "-n", "auto", "tests/anymail", *session.posargs)


@nox.session(python=PYTHONS[0])
@nox.parametrize("celery", ["5.4", "5.5", "5.6", "5.7"])
def celery(session: nox.Session, celery: str) -> None:
    """The Celery tests, kills included, with each release that is supported."""
    session.install("-e", ".", *group("test"), django(str(session.python)), f"celery~={celery}.0")
    tests = sorted(str(path) for path in Path("tests/queues").glob("test_celery*.py"))
    session.run("pytest", "-q", "-n", "2", *tests, *session.posargs)


@nox.session(python=NEWEST)
def screenshots(session: nox.Session) -> None:
    """The admin page in a real Chromium (Debian: `apt-get install chromium`), and its pictures for the docs."""
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        session.skip("there is no Chromium on this machine")
    session.install("-e", ".", *group("browser"), django(NEWEST))
    session.run("pytest", "-q", "tests/django/test_browser.py", env={"SCREENSHOTS": "docs/_static"})


@nox.session(python=OURS)
def fire(session: nox.Session) -> None:
    """Senders, stores and workers killed at random: 10,000 sends through each store, 1,000 through each queue."""
    session.install("-e", ".", *group("test"), django(OURS))
    figures = {"FIRE_SENDS": "10000", "QUEUE_SENDS": "1000"}
    queues = sorted(str(path) for path in Path("tests/queues").glob("test_*_fire.py"))
    session.run("pytest", "-q", "-s", "tests/fire", *queues, *session.posargs, env=figures)


@nox.session(python=OURS)
def recipes(session: nox.Session) -> None:
    """The page of recipes, in the real worker of each queue."""
    session.install("-e", ".", *group("recipes"), django(OURS))
    session.run("pytest", "-q", "tests/queues/test_recipes.py", "tests/docs", *session.posargs)


@nox.session(python=NEWEST)
def deep(session: nox.Session) -> None:
    """The property tests and state machines with sixty times the examples, and every cell of the tables of faults:
    about an hour on two cores.
    """
    session.install("-e", ".", *group("test"), django(NEWEST))
    chosen = ("-m", "hypothesis or table", "--hypothesis-profile", "deep")
    session.run("pytest", "-q", "-n", "auto", *chosen, *session.posargs, env={"EVERY_CELL": "1"})


@nox.session(python=OURS)
def bench(session: nox.Session) -> None:
    """The benchmarks: ratios, taken in one run."""
    session.install("-e", ".", *group("bench"))
    for path in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(path), *session.posargs)


@nox.session(python=NEWEST)
def mutation(session: nox.Session) -> None:
    """Mutation testing: of all modules (hours), or `-- --sample 50 retrypolicy/backoff.py` (docs/mutation.md)."""
    session.install("-e", ".", *group("mutation"), django(NEWEST))
    session.run("python", "tests/mutating.py", *session.posargs)


@nox.session(python=OURS)
def api(session: nox.Session) -> None:
    """Write the snapshot of the public names anew, after a change that was meant."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", "-q", "tests/test_api_snapshot.py", env={"UPDATE_API_SNAPSHOT": "1"})


@nox.session(python=NEWEST)
def requests_suite(session: nox.Session) -> None:
    """The tests of requests itself, with our adapter in the place of its own (`-- -k name` chooses)."""
    session.install("-e", ".[testing]", "requests[socks]", "pytest", "pytest-httpbin", "httpbin", "pytest-mock")
    place = pathlib.Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    session.run("pip", "download", "-q", "--no-deps", "--no-binary", "requests", "-d", str(place), "requests")
    [archive] = place.glob("requests-*.tar.gz")
    shutil.unpack_archive(archive, place, filter="data")
    here = str(pathlib.Path("tests/requests/suite").resolve())
    session.chdir(place / archive.name.removesuffix(".tar.gz"))
    run = ("pytest", "-q", "-p", "swapped", "-p", "no:cacheprovider", "tests", *session.posargs)
    session.run(*run, env={"PYTHONPATH": here})
    # Where nothing is sent, many must fail: the swap takes effect.
    session.run(*run, "--maxfail=50", env={"PYTHONPATH": here, "SWAPPED": "broken"}, success_codes=[1], silent=True)
