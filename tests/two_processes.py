"""Runs everything that several processes can do together in two, once for all tests that compare with one.

``python -m tests.two_processes FOLDER`` imports this package, and then forks two processes with the
environment that torchrun or ``accelerate launch`` gives. Each of them writes its results to FOLDER.
"""

from __future__ import annotations

import io
import os
import shlex
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch.multiprocessing

from inversight.cli import main
from inversight.core.processes import Processes, launched
from inversight.core.seeding import generator
from inversight.models.networks import FILE_NAME, build_classifier, save_classifier
from tests.attacks import two_processes as attacks
from tests.pipeline.tiny import SMALL_ATTACK, SMALL_PRIOR, image_folders
from tests.priors import two_processes as games


def commands(folder: Path) -> dict[str, str]:
    """Return the commands that both processes run, without ``--out NAME``."""
    prior = f"prior train --public {folder}/public --device cpu {SMALL_PRIOR}"
    # Rounding in half precision depends on what else is in a batch.
    attack = f"attack --prior {folder}/prior --target {folder}/target --device cpu --set half=false"
    return {"prior": prior, "attack": f"{attack} {SMALL_ATTACK}"}


def run_commands(folder: Path, processes: Processes) -> None:
    """Run each command in ``folder``, and write its exit code and standard output to a file."""
    os.chdir(folder)
    for name, line in commands(folder).items():
        features = "--features pixel" if name == "prior" else ""
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                main(shlex.split(f"{line} {features} --out {name}"))
        except SystemExit as end:
            Path(f"{name}-{processes.index}.txt").write_text(f"{end.code}\n{printed.getvalue()}")


def run(index: int, folder: Path) -> None:
    """Do the work of one process."""
    os.environ.update(RANK=str(index), LOCAL_RANK=str(index))
    processes = launched("cpu")
    games.main(folder, processes)
    attacks.main(folder, processes)
    with (
        patch("inversight.core.processes.launched", lambda device: processes),
        patch.object(processes, "close", processes.wait),  # the group cannot be formed again
    ):
        run_commands(folder, processes)
    processes.close()


if __name__ == "__main__":
    import accelerate  # noqa: F401  # once for both

    folder = Path(sys.argv[1])
    image_folders(folder)
    target = build_classifier(
        "resnet", classes=("ann", "bob"), image_shape=(1, 8, 8), width=2, mean=[0.5], std=[0.5],
        rng=generator(0),
    )  # fmt: skip
    (folder / "target").mkdir()
    save_classifier(target, folder / "target" / FILE_NAME)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]),
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
    torch.multiprocessing.start_processes(run, (folder,), nprocs=2, start_method="fork")
