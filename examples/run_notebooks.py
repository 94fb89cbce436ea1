"""Runs notebooks of this folder from top to bottom.

python examples/run_notebooks.py --tiny              every notebook at a budget of seconds: does it run?
python examples/run_notebooks.py digits --save       one notebook in full, with its outputs kept in the file

Each runs in a folder of its own, which is deleted. Kept outputs hold no progress, warnings, times or paths.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TINY = "INVERSIGHT_TINY"
"""Environment variable that the notebooks' cell of parameters reads."""
LARGEST = 300_000
"""Bytes of a notebook with its outputs."""


def main() -> None:
    names = sorted(file.stem for file in HERE.glob("*.ipynb"))
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    arguments.add_argument("--tiny", action="store_true", help="at a budget of seconds")
    arguments.add_argument("--save", action="store_true", help="keep the outputs in the file")
    options = arguments.parse_args()
    if options.tiny and options.save:
        arguments.error("--save keeps outputs of a full run; leave --tiny out")
    if unknown := set(options.names) - set(names):
        arguments.error(f"expected some of {', '.join(names)}, found {', '.join(unknown)}")
    os.environ.pop(TINY, None)
    if options.tiny:
        os.environ[TINY] = "1"
    for name in options.names or names:
        begun = time.monotonic()
        run(HERE / f"{name}.ipynb", save=options.save)
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)


def run(file: Path, *, save: bool) -> None:
    """Run a notebook; with ``save`` write its outputs to the file.

    Raises:
        CellExecutionError: a cell raised; names it.
        ValueError: an output names a folder of this machine, or the file would be too large.
    """
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
        clean(notebook)
        text = nbformat.writes(notebook)
        for path in (folder, str(HERE.parent.resolve()), str(Path.home())):
            if path in text:
                raise ValueError(f"{file.name}: an output names {path}")
    if len(text) > LARGEST:
        raise ValueError(f"{file.name}: {len(text)} bytes, expected at most {LARGEST}")
    if save:
        file.write_text(text + "\n", encoding="utf-8")


def clean(notebook: Any) -> None:
    """Drop what differs from run to run: standard error, times, and the kernel's version."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]


if __name__ == "__main__":
    main()
