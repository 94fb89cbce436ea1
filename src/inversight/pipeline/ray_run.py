"""Run the blocks of shadow models on a Ray cluster, each as a task of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inversight.core.cluster import Cluster, Files, Task, unpack
from inversight.core.progress import Progress, silent
from inversight.core.run import atomic_file, atomic_folder
from inversight.models.recipes import TrainingRecipe
from inversight.pipeline.shadow_run import ShadowRun
from inversight.pipeline.shadows import Block, ShadowAttack, ShadowJob, run_block, train_block


class RayRun(ShadowRun):
    """The blocks of a job on a cluster. Blocks that are there are not sent.

    The models are trained at once and stay on the cluster until their attack. A task whose process or
    machine is lost runs again. What still runs is stopped when the cluster is left.
    """

    def __init__(
        self, job: ShadowJob, folder: Path, blocks: list[Block], *, cluster: Cluster
    ) -> None:
        super().__init__(job, folder, blocks, threads=cluster.threads)
        self._cluster, self._trained, self._tasks = (
            cluster,
            dict[Block, Task](),
            dict[Block, Task](),
        )

    def __enter__(self) -> RayRun:
        missing = self.missing()
        if missing:
            self._job = self._cluster.put(replace(self.job, device=self._cluster.device))
        if isinstance(self.job.recipe, TrainingRecipe):
            self._trained = {
                block: self._cluster.submit(train_block, self._job, block) for block in missing
            }
        return self

    def attack(self, attack: ShadowAttack) -> None:
        super().attack(attack)
        if missing := self.missing():
            sent = self._cluster.put(attack)
            for block in missing:
                files = (self._trained[block],) if block in self._trained else ()
                self._tasks[block] = self._cluster.submit(
                    run_block, self._job, sent, block, files=files
                )

    def finish(self, progress: Progress = silent) -> None:
        done = len(self.blocks) - len(self._tasks)
        progress(done, len(self.blocks), self.note(done))
        for block, found in self._cluster.results(self._tasks):
            if isinstance(found, Exception):
                raise found
            _write(found, block, self.folder)
            done += 1
            progress(done, len(self.blocks), self.note(done))


def _write(files: Files, block: Block, folder: Path) -> None:
    """Write what the task of a block left, the block itself last."""
    name = block.file(folder).name
    folders = {path.partition("/")[0] for path in files if path != name}
    for kept in folders:
        with atomic_folder(folder / kept) as partial:
            inside = {p.partition("/")[2]: c for p, c in files.items() if p.startswith(f"{kept}/")}
            unpack(inside, partial)
    with atomic_file(block.file(folder)) as partial:
        partial.write_bytes(files[name])
