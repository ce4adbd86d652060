"""`retrypolicy check`: try the laws of retrying on every policy of a file, and say what looks wrong in it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from retrypolicy.config import lint, load_policies
from retrypolicy.config.lint import CHECKS
from retrypolicy.config.lint import Finding as LintFinding
from retrypolicy.errors import ConfigurationError
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import load

if TYPE_CHECKING:
    from retrypolicy.testing.check.findings import PolicyReport

CLEAN, FOUND, BAD = 0, 1, 2
"""Exit codes: nothing was found; something was; the check could not be made (one line says why)."""


def add_parser(subparsers: Any) -> None:
    """Add `check` to the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "check",
        help="try the laws of retrying on the policies of a file",
        description="Plays every policy of a file in a model of client, network, server and ledger, in virtual time: "
        "can it send twice, retry for ever, ignore a server that asks for time? Prints the shortest story of each "
        "thing found, and what mends it; and what looks wrong in the policy as it is written.",
        epilog="Exit code 0: nothing found; 1: something found; 2: the check could not be made.",
    )
    parser.add_argument("file", metavar="FILE", help="policies as TOML or JSON")
    parser.add_argument("--policy", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--provider", metavar="NAME", help="the profile that they are used with, or its TOML file")
    parser.add_argument("--ignore", action="append", default=[], metavar="LAW", help="a law, or the id of a lint check")
    parser.add_argument("--examples", type=_count, metavar="N", help="scenarios to search through for each policy")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one looks elsewhere (default 0)")
    parser.add_argument("--json", action="store_true", help="what was found as JSON, and nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the policies. Raises `ConfigurationError` or `PolicyError` for what can't be checked."""
    try:
        from retrypolicy.testing.check import checking
    except ImportError as error:
        print(f"retrypolicy check: {error}", file=sys.stderr)
        return BAD
    policies = _chosen(load_policies(arguments.file), arguments)
    provider = None if arguments.provider is None else load(arguments.provider)
    unknown = [name for name in arguments.ignore if name not in (*checking.NAMES, *CHECKS)]
    if unknown:
        known = ", ".join((*checking.NAMES, *CHECKS))
        raise ConfigurationError(f"--ignore: {unknown[0]!r} is not allowed; must be one of {known}")
    laws = [name for name in arguments.ignore if name in checking.NAMES]
    documents, found = [], False
    for name, policy in policies.items():
        report = checking.check_policy(
            policy,
            provider,
            examples=arguments.examples or checking.EXAMPLES,
            seed=arguments.seed,
            ignore=laws,
            raises=False,
        )
        looks = [finding for finding in lint(policy, provider) if finding.id not in arguments.ignore]
        found = found or bool(report.findings or looks)
        if arguments.json:
            documents.append(_document(name, report, looks))
        else:
            _show(name, report, looks)
    if arguments.json:
        print(json.dumps({"clean": not found, "policies": documents}, indent=2))
    return FOUND if found else CLEAN


def _chosen(policies: dict[str, RetryPolicy], arguments: argparse.Namespace) -> dict[str, RetryPolicy]:
    if not policies:
        raise ConfigurationError(f"{arguments.file}: there is no policy in it")
    for name in arguments.policy or ():
        if name not in policies:
            raise ConfigurationError(f"--policy: {arguments.file} has no {name!r}; it has {', '.join(policies)}")
    return {name: policy for name, policy in policies.items() if not arguments.policy or name in arguments.policy}


def _show(name: str, report: PolicyReport, looks: list[LintFinding]) -> None:
    where = f" with {report.provider}" if report.provider else ""
    number = len(report.findings) + len(looks)
    print(f"{name}{where}: {f'{number} found' if number else 'nothing found'} in {report.plays} plays", flush=True)
    for finding in (*report.findings, *looks):
        print(f"\n{finding}")
    if number:
        print(flush=True)


def _document(name: str, report: PolicyReport, looks: list[LintFinding]) -> dict[str, Any]:
    lints = [{"id": f.id, "name": f.name, "field": f.field, "message": f.message, "hint": f.hint} for f in looks]
    return {**report.to_dict(), "policy": name, "lint": lints}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of scenarios")
    return int(text)
