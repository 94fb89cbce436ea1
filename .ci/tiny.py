"""Runs the tiny versions of benchmarks one after another in this process, which imports PyTorch once.

python .ci/tiny.py 'NAME [OPTION...]'...

Exit code 1 at the first that fails, with its whole output.
"""

from __future__ import annotations

import io
import runpy
import shlex
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHOWN = 12
"""Last lines of a benchmark's output that are shown."""


def run(name: str, options: list[str]) -> tuple[bool, str]:
    """Return whether a benchmark ended well, and what it printed."""
    script, output = str(BENCHMARKS / f"{name}.py"), io.StringIO()
    sys.argv = [script, "--tiny", *options]
    good = True
    with redirect_stdout(output), redirect_stderr(output):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            good = end.code in (None, 0)
            print(end.code if isinstance(end.code, str) else "")
        except BaseException:
            good = False
            traceback.print_exc()
    return good, output.getvalue()


def main() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    for line in sys.argv[1:]:
        name, *options = shlex.split(line)
        started = time.monotonic()
        good, output = run(name, options)
        if not good:
            print(f"- benchmarks/{name}.py --tiny failed\n{output}", flush=True)
            sys.exit(1)
        last = "\n".join(output.splitlines()[-SHOWN:])
        print(
            f"+ benchmarks/{name}.py --tiny ({time.monotonic() - started:.0f} s)\n{last}",
            flush=True,
        )


if __name__ == "__main__":
    main()
