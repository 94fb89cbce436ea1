"""Everything that goes on from an audit takes it again from a table with splits and groups."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from inversight import audit
from inversight.core.console import Quiet
from inversight.core.run import read_object
from inversight.pipeline.defend import defend
from inversight.pipeline.expose import expose
from tests.pipeline.tables import assert_described
from tests.pipeline.tiny import SHADOWED, image_folders

pytestmark = pytest.mark.usefixtures("no_trials")


def write_table(folder: Path) -> Path:
    """Write images and a table whose groups are pairs of neighbours of a class."""
    names = {"private": "train", "holdout": "test", "public": "val"}
    rows = [
        {
            "path": file.relative_to(folder).as_posix(),
            "label": file.parent.name,
            "group": f"{name}-{file.parent.name}-{int(file.stem) // 2}",
            "split": names[name],
        }
        for name, path in image_folders(folder).items()
        for file in sorted(path.rglob("*.png"))
    ]
    pd.DataFrame(rows).sample(frac=1.0, random_state=0).to_csv(folder / "all.csv", index=False)
    return folder / "all.csv"


def test_an_audit_of_a_table_is_exposed_and_defended(tmp_path: Path) -> None:
    table, run = write_table(tmp_path), tmp_path / "run"
    settings = {**SHADOWED, "shadows": 4, "group_by": "group"}
    first = audit(data=table, **settings, out=run, reporter=Quiet())
    assert len(first.samples) == 12 and first.samples["group"].nunique() == 6
    assert_described(
        first.samples, "in audits", "in white-box", "with a holdout", "with shadow", "with groups"
    )
    grown = expose(run, shadows=6)
    assert read_object(run / "run.json")["shadows"]["models"] == 6
    assert grown.samples["group"].nunique() == 6
    together = audit(
        data=table, **{**settings, "shadows": 6}, out=tmp_path / "once", reporter=Quiet()
    )
    columns = ["id", "group", "exposure", "nearest_distance"]
    pd.testing.assert_frame_equal(
        grown.samples[columns].sort_values("id", ignore_index=True),
        together.samples[columns].sort_values("id", ignore_index=True),
    )
    result = defend(run, ["tests.defences.examples:Twin"], reporter=Quiet())
    assert (result.folder / "defences.json").is_file()
