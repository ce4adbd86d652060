"""`python -m benchmarks`: all of them, one after the other; options go to each."""

from __future__ import annotations

import runpy
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("*.py")):
    if not path.stem.startswith("_"):
        print(f"\n# {path.stem}")
        runpy.run_path(str(path), run_name="__main__")
