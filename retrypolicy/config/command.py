"""`retrypolicy schema`: the JSON Schema of policy files."""

from __future__ import annotations

import argparse
import json
from typing import Any

from retrypolicy.config.schema import json_schema


def add_parser(subparsers: Any) -> None:
    """Add `schema` to the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "schema",
        help="the JSON Schema of policy files",
        description="Prints the JSON Schema of policy files, for editors and CI. Backoffs of plug-ins are part of it.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the schema. Always 0."""
    print(json.dumps(json_schema(), indent=2))
    return 0
