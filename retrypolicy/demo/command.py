"""`retrypolicy demo`: the main job, end to end, on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retrypolicy.demo.mailbox_file import CORPUS, UnusableMailbox, read_letters
from retrypolicy.demo.stage import DemoFailed, Play, Played, play
from retrypolicy.demo.tally import Tally, tally
from retrypolicy.guard import open_ledger

SEED = 1


def add_parser(subparsers: Any) -> None:
    """Add `demo` to the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="send real messages on a bad day, three ways, and count what the server accepted",
        description="Starts a mail API that has a bad day on this machine, and sends real messages to it: with plain "
        "Anymail, with the retries of Anymail's documentation, and with retrypolicy. The API counts what it accepted.",
    )
    parser.add_argument(
        "--messages", metavar="FILE", type=Path, default=CORPUS, help="an mbox file or a folder of .eml files"
    )
    parser.add_argument(
        "--limit", metavar="N", type=_positive, default=40, help="at most so many messages (default 40)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=SEED, help=f"another bad day (default {SEED})")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="where to leave the ledger (default: a new folder)")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, and nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. 0: nothing twice, nothing lost silently; 1: a promise was broken; 2: it could not run."""
    missing = [name for name in ("rich", "django", "anymail") if find_spec(name) is None]
    if missing:
        return _refuse(f"{' and '.join(missing)} can't be found here; pip install 'retrypolicy[demo]'")
    from retrypolicy.demo import show

    try:
        count = len(read_letters(arguments.messages, arguments.limit))
        directory = _directory(arguments.keep)
        started = time.monotonic()
        plan = Play(
            seed=arguments.seed, messages=arguments.messages, limit=arguments.limit, count=count, directory=directory
        )
        with show.bar(len(plan.tasks)) as progress:
            played = play(plan, progress)
    except (UnusableMailbox, DemoFailed) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename or arguments.keep}: {error.strerror or type(error).__name__}")
    except KeyboardInterrupt:
        return _refuse("stopped", code=130)
    result = _tally(plan, played)
    if arguments.json:
        print(json.dumps(_document(plan, result, time.monotonic() - started), indent=2))
    else:
        show.all_of_it(plan, result)
    return 0 if result.good else 1


def _tally(plan: Play, played: Played) -> Tally:
    ledger = open_ledger(plan.ledger)
    try:
        return tally(plan, played, ledger)
    finally:
        ledger.close()


def _document(plan: Play, result: Tally, seconds: float) -> dict[str, Any]:
    return {
        "seed": plan.seed,
        "messages": plan.count,
        "seconds": round(seconds, 3),
        "ledger": plan.ledger,
        **result.to_dict(),
    }


def _directory(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="retrypolicy-demo-"))
    keep.mkdir(parents=True, exist_ok=True)
    if (keep / "ledger.db").exists():
        # Its messages are known there already, and would rightly not be sent again.
        raise DemoFailed(f"{keep}: has a ledger of an earlier demo; give another folder")
    return keep


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _refuse(why: str, code: int = 2) -> int:
    print(f"retrypolicy demo: {why}", file=sys.stderr)
    return code
