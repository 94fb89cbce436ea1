from __future__ import annotations

import pandas as pd
import pytest

from inversight.core.errors import RunError
from inversight.report import GalleryItem, load_report_data, render
from tests.report.examples import png, read_example, samples, write_run


def test_a_run_folder_becomes_a_page(tmp_path):
    run = write_run(tmp_path / "run")
    data = load_report_data(run)
    assert data.facts["seed"] == "3"
    assert data.facts["time of all stages"] == "2 min 00 s"
    assert data.split == "private: 30 images of 5 classes; public: 50 images"
    assert data.holdout_nearest is None
    page = render(data)
    assert "mind this" in page and "as a note" in page and "p1/1.png" in page


def test_the_holdout_table_is_read_where_it_is(tmp_path):
    run = write_run(tmp_path / "run")
    pd.DataFrame({"id": ["a", "b"], "nearest_distance": [0.5, None]}).to_parquet(
        run / "holdout.parquet"
    )
    found = load_report_data(run).holdout_nearest
    assert found[0] == 0.5 and found[1] != found[1]


def test_no_path_of_a_run_with_hashed_names_is_shown(tmp_path):
    # The arm is called as the folder of the private images is.
    changes = read_example("run_with_paths.json")
    data = load_report_data(write_run(tmp_path / "run", **changes))
    assert data.split == "private: 30 images ((hidden)); public: 50 images ((hidden))"
    assert data.settings["arm"] == "data" and data.settings["private"] == "(hidden)"
    assert data.settings["target"] == "mine.models:net?weights=(hidden)"
    page = render(data)
    assert "secret" not in page and "data-more" not in page and "mine.models:net" in page
    changes["settings"]["hash_ids"] = False
    assert "/secret/judge" in render(load_report_data(write_run(tmp_path / "shown", **changes)))


def test_only_the_tables_are_required(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text("{}")
    assert "Ledger" in render(load_report_data(run, title="Mine"))


def test_pictures_are_refused_where_the_run_allows_none(tmp_path):
    run = write_run(tmp_path / "run", images="none")
    with pytest.raises(ValueError, match="no picture"):
        load_report_data(run, gallery=[GalleryItem("a", "a", 1.0, 1.0, png(1), png(2))])


def test_integer_labels_and_nullable_columns_are_shown(tmp_path):
    table = samples().assign(label=range(30)).convert_dtypes()
    page = render(load_report_data(write_run(tmp_path / "run", table)))
    assert ">29</td>" in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", None, "not a run folder"),
        ("metrics.json", None, "metrics.json is missing"),
        ("run.json", b"{", "cannot be read"),
        ("metrics.json", b"[1]", "expected named values"),
        ("samples.parquet", b"PAR1 no", "cannot be read as a Parquet table"),
        ("samples.parquet", samples().drop(columns="ddcs_best"), "expected the column ddcs_best"),
    ],
)
def test_a_damaged_run_is_one_clear_line(tmp_path, name, content, words):
    run = write_run(tmp_path / "run")
    if isinstance(content, pd.DataFrame):
        content.to_parquet(run / name)
    elif content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    with pytest.raises(RunError, match=words) as caught:
        load_report_data(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)
