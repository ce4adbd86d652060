"""How the demo looks: a progress bar while it runs, then the table, what it means, and what to do next."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from retrypolicy.demo import APIS, MODES
from retrypolicy.demo.stage import Play
from retrypolicy.demo.tally import OURS, Held, Tally

NAMES = {"plain": "plain Anymail", "recipe": "Anymail recipe", "retrypolicy": "retrypolicy"}
_API_NAMES = {"mandrill": "Mandrill", "resend": "Resend", "both": "both"}


def all_of_it(play: Play, result: Tally) -> None:
    """Print the table and everything about it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # subjects have letters that not every terminal has
    console = Console(highlight=False)
    messages = "1 message" if play.count == 1 else f"{play.count} messages, each"
    console.print(f"{messages} through two APIs on a bad day (seed {play.seed}), sent in three ways:")
    console.print()
    console.print(table(result))
    console.print()
    console.print(
        "The server counted; nothing here is what a client believes. Every message met the same faults each way. Each "
        "way ran in a process of its own, which was killed (kill -9) once for each API, right after the API had "
        "accepted a message and before it answered; a new process then got every message that was not known to be "
        "finished, as a queue would deliver it again."
    )
    console.print()
    console.print(meaning(play, result), style="bold")
    console.print()
    _held(console, play, result)


@contextmanager
def bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar for each way, on stderr; nothing where that is no terminal. Gives what to call for each message."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {mode: progress.add_task(NAMES[mode], total=total) for mode in MODES}
        yield lambda mode: progress.advance(tasks[mode])


def table(result: Tally) -> Table:
    """The table, in the server's numbers."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    made.add_column("sent with", no_wrap=True)
    made.add_column("API", no_wrap=True)
    for name in ("accepted\nonce", "more than\nonce", "never\naccepted", "\nheld", "\nrequests", "\ntime"):
        made.add_column(name, justify="right", no_wrap=True)
    for mode in MODES:
        for api in (*APIS, "both"):
            row, last = result.rows[mode][api], api == "both"
            made.add_row(
                NAMES[mode] if api == APIS[0] else "",
                _API_NAMES[api],
                str(row.once),
                Text(str(row.more), style="bold red" if row.more else ""),
                str(row.never),
                str(row.held) if mode == OURS else "-",
                str(row.requests),
                f"{result.seconds[mode]:.1f} s" if last else "",
                style="bold" if last else "",
                end_section=last,
            )
    return made


def meaning(play: Play, result: Tally) -> str:
    """What the table means, good or bad, in one sentence."""
    recipe, ours = result.rows["recipe"]["both"], result.rows[OURS]["both"]
    accepted = sum(one.accepted > 0 for one in result.held)
    parts = [
        f"with the recipe {recipe.more} of {len(play.tasks)} e-mails went out more than once",
        f"with retrypolicy {ours.more or 'none'}",
    ]
    if result.held:
        parts.append(
            f"at the price of {len(result.held)} that are held for a decision, because nobody on this side of the wire "
            f"can know whether they were accepted (the server knows: {accepted} were, {len(result.held) - accepted} "
            "were not)"
        )
    if result.lost:
        parts.append(f"and {len(result.lost)} were lost silently, which is a bug")
    sentence = ", ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _held(console: Console, play: Play, result: Tally) -> None:
    """The held messages by name, and the commands that settle them. Long lines are not folded: they get copied."""
    if result.held:
        console.print("Held, and what the API's own log says of each:")
        for one in result.held:
            truth = "accepted" if one.accepted else "not accepted"
            console.print(
                Text(f"  {one.digest[:12]}  {_API_NAMES[one.api]:8}  {truth:12}  {one.label}"), soft_wrap=True
            )
        console.print("\nLook there, then say what you found, for one or for several at once:")
        for command in _commands(play.ledger, result.held[0]):
            console.print(Text("  " + shlex.join(["retrypolicy", "ledger", *command])), soft_wrap=True)
    console.print(Text(f"\nThe ledger and a log are in {play.directory.resolve()}"), soft_wrap=True)


def _commands(ledger: str, one: Held) -> list[list[str]]:
    verdict = "applied" if one.accepted else "not_applied"
    return [
        ["list", "--ledger", ledger, "--phase", "held"],
        ["resolve", "--ledger", ledger, one.digest[:12], verdict],
    ]
