"""The command `retrypolicy`: it finds the subcommand's module, and loads no other."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from retrypolicy.errors import RetryPolicyError

COMMANDS = {
    "demo": ("retrypolicy.demo.command", "send real messages on a bad day, three ways, and count"),
    "check": ("retrypolicy.testing.check.command", "try the laws of retrying on the policies of a file"),
    "schema": ("retrypolicy.config.command", "the JSON Schema of policy files"),
    "ledger": ("retrypolicy.guard.commands", "look after the durable record of sends"),
    "doctor": ("retrypolicy.guard.doctor", "say what of a ledger, its secret and its clock is not as it should be"),
}
"""For each subcommand the module with its `add_parser(subparsers)`, and a line for the help.

`add_parser` adds the subcommand's parser, and sets its default `run`: a function of the parsed arguments that returns
the exit code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label may hold what the terminal's encoding has not
    parser = argparse.ArgumentParser(
        prog="retrypolicy", description="Retried whenever that is safe, never sent twice, never lost silently."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        if name == chosen:
            import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    parsed = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except RetryPolicyError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `retrypolicy ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        return 1
