"""Mutation testing, one module at a time: what `nox -s mutation -- MODULE ...` runs. docs/mutation.md has the results.

mutmut knows one set of tests for a whole project. Here each module has its own: those that ought to notice a change in
it, and are fast.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

WIRE = (
    "not (no_claim and not (new_connection and plain and small)) and not (sharp and (stall or tunnel)) and not forward"
    " and not (test_it_holds and (body or chunks or to_the_end or before_the_head or used))"
)
"""Without most of the tables: their cells wait for time-outs."""

MODULES = {
    "retrypolicy/decision.py": [
        "tests/test_decision.py", "tests/urllib3/test_convert.py", "tests/test_engine.py",
        "-k", "not test_decide_reads_no_clock",  # which looks at the source, where mutmut's imports stand
    ],
    "retrypolicy/backoff.py": ["tests/test_backoff.py", "tests/urllib3/test_convert.py"],
    "retrypolicy/call/guarded.py": [
        "tests/test_engine.py", "tests/test_engine_shared.py", "tests/test_telemetry.py",
        "tests/guard/test_too_late.py", "tests/guard/test_attempts_counted.py", "tests/guard/test_store_gone.py",
        "tests/guard/test_reconcile.py", "tests/guard/test_what_a_send_costs.py", "tests/guard/test_recorder.py",
        "tests/guard/test_between_attempts.py",
        "tests/urllib3/test_pool_keys.py", "tests/requests/test_hops.py", "tests/requests/test_adapter.py",
        "-k", "not no_fault and not valkey and not fork",
    ],
    "retrypolicy/guard/transitions.py": ["tests/guard/test_transitions.py", "tests/guard/test_protocol_laws.py"],
    "retrypolicy/guard/memory.py": ["tests/guard/test_memory.py", "tests/guard/test_opening.py"],
    "retrypolicy/guard/key.py": [
        "tests/guard/test_keys.py", "-k", "not postgres and not valkey and not test_the_outgoing_key",
    ],
    "retrypolicy/guard/recorder.py": ["tests/guard/test_recorder.py"],
    "retrypolicy/urllib3/failures.py": ["tests/urllib3/test_failures.py"],
    "retrypolicy/urllib3/wire.py": [
        "tests/urllib3/test_wire_watch.py", "tests/urllib3/test_wire_answers.py", "tests/urllib3/test_wire_deadline.py",
        "tests/urllib3/test_wire_stages.py", "tests/urllib3/test_wire_heads.py",
        "-k", WIRE,
    ],
    "retrypolicy/urllib3/sending.py": [
        "tests/urllib3/test_pool_manager.py", "tests/urllib3/test_pool_keys.py", "tests/urllib3/test_pool_dropin.py",
        "tests/urllib3/test_pool_redirects.py", "tests/requests/test_adapter.py", "tests/requests/test_hops.py",
        "tests/urllib3/test_sending.py", "tests/requests/test_dropin.py", "tests/requests/test_transports.py",
        "-k", "not no_fault and not gevent and not fork",
    ],
}  # fmt: skip
"""The tests for each module, and options that choose among them."""

PROSE = r"""["'][^"']*\w+,? \w+,? \w+"""
"""How an error is worded is no behaviour: lines with three words in quotes are left alone."""

CONFIGURATION = """
[tool.mutmut]
source_paths = ["retrypolicy"]
only_mutate = [{module}]
do_not_mutate_patterns = [{prose}]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-m", "not slow"]
process_isolation = "forkserver"
timeout_multiplier = 2.0
timeout_constant = 20.0
"""
SURVIVED, NO_TESTS = (0,), (5, 33)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=list(MODULES), help="all, if none is named")
    parser.add_argument("--sample", type=int, help="so many mutants of each module, chosen at random")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the sample")
    parser.add_argument("--only", nargs="+", metavar="MUTANT", help="these, by the names that a run before gave them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--show", action="store_true", help="what the survivors change")
    options = parser.parse_args()
    for module in options.modules:
        if module not in MODULES:
            parser.error(f"{module} has no tests named for it; choose from {', '.join(MODULES)}")
    for module in options.modules:
        with tempfile.TemporaryDirectory() as place:
            try_out(module, Path(place), options)
    return 0


def try_out(module: str, place: Path, options: argparse.Namespace) -> None:
    """Run the mutants of one module in a copy of the tree, and print what became of them."""
    for name in ("retrypolicy", "tests"):
        shutil.copytree(name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    quoted = [json.dumps(value) for value in (module, PROSE)]
    ours = CONFIGURATION.format(module=quoted[0], prose=quoted[1], tests=json.dumps(MODULES[module]))
    (place / "pyproject.toml").write_text(Path("pyproject.toml").read_text() + ours)
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.jobs)]
    names = names_of_mutants(module, place)
    chosen = names if options.only is None else [name for name in names if name.rpartition(".")[2] in options.only]
    if options.sample is not None and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(names, options.sample)
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutation"}
    command += chosen if len(chosen) < len(names) else ["*"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    codes = json.loads((place / "mutants" / f"{module}.meta").read_text())["exit_code_by_key"]
    found = Counter(status(codes[name]) for name in chosen)
    if done.returncode or found["not run"]:
        sys.exit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}")
    caught = found["killed"] + found["timeout"]
    of = "" if len(chosen) == len(names) else f" (of {len(names)} that there are, seed {options.seed})"
    print(f"{module}: {caught} of {len(chosen)} mutants caught, {caught / len(chosen):.1%}{of}; {dict(found)}")
    for name in chosen:
        if status(codes[name]) in ("survived", "no tests", "broken", "timeout"):
            print(f"  {status(codes[name])}: {name.rpartition('.')[2]}")
            if options.show:
                shown = subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=place, capture_output=True)
                print(shown.stdout.decode())
    sys.stdout.flush()


def names_of_mutants(module: str, place: Path) -> list[str]:
    """As mutmut will number them."""
    code = (
        "import sys; from mutmut.mutation.file_mutation import mutate_file_contents as mutate\n"
        "print(*mutate(sys.argv[1], open(sys.argv[1]).read()).mutant_names, sep='\\n')"
    )
    names = subprocess.run([sys.executable, "-c", code, module], cwd=place, capture_output=True, text=True, check=True)
    dotted = module.removesuffix(".py").replace("/", ".")
    return [f"{dotted}.{name}" for name in names.stdout.split()]


def status(code: int | None) -> str:
    if code is None:
        return "not run"
    if code in SURVIVED:
        return "survived"
    if code in NO_TESTS:
        return "no tests"
    if code in (4, 255):
        return "broken"  # pytest did not find the tests that it was given
    return "timeout" if code in (-24, 24, 36, 152) else "killed"


if __name__ == "__main__":
    sys.exit(main())
