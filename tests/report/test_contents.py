from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from inversight.core.errors import RunError
from inversight.report import GalleryItem, load_report_data, render
from inversight.report.contents import EXPOSURE_GALLERY, GALLERY, without_paths, write_gallery
from tests.report.examples import budget, png, read_example, samples, write_run
from tests.report.exposure_examples import exposure_item


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_run_folder_becomes_a_page(run: Path) -> None:
    data = load_report_data(run)
    assert data.facts["seed"] == "3"
    assert data.facts["time of all stages"] == "2 min 00 s"
    assert data.split == "private: 30 images of 5 classes; public: 50 images"
    assert data.holdout_nearest is None and data.budget is None
    page = render(data)
    assert "mind this" in page and "as a note" in page and "p1/1.png" in page


def test_reads_holdout_and_budget_if_they_exist(run: Path) -> None:
    holdout = pd.DataFrame({"id": ["a", "b"], "nearest_distance": [0.5, None]})
    holdout.to_parquet(run / "holdout.parquet")
    budget().to_parquet(run / "budget.parquet")
    data = load_report_data(run)
    assert data.holdout_nearest == pytest.approx([0.5, float("nan")], nan_ok=True)
    assert 'id="budget"' in render(data)


def test_hides_all_paths_of_a_run_with_hashed_names(tmp_path: Path) -> None:
    # The arm has the same name as the folder of the private images.
    changes = read_example("run_with_paths.json")
    data = load_report_data(write_run(tmp_path / "run", **changes))
    assert data.split == "private: 30 images ((hidden)); public: 50 images ((hidden))"
    assert data.settings["arm"] == "data" and data.settings["private"] == "(hidden)"
    assert data.settings["target"] == "mine.models:net?weights=(hidden)"
    page = render(data)
    assert "secret" not in page and "data-more" not in page and "mine.models:net" in page
    changes["settings"]["hash_ids"] = False
    assert "/secret/judge" in render(load_report_data(write_run(tmp_path / "shown", **changes)))


def test_hides_weights_before_a_key(tmp_path: Path) -> None:
    spec = "mine.models:net?weights=/secret/w.pth&key=ema"
    changes = {
        "settings": {"hash_ids": True, "target": spec},
        "warnings": [f"--target {spec}: /secret/w.pth: 1 tensor(s) left out"],
    }
    data = load_report_data(write_run(tmp_path / "run", **changes))
    assert data.settings["target"] == "mine.models:net?weights=(hidden)&key=ema"
    assert "secret" not in render(data)


def test_hides_the_address_of_a_service_with_the_names(tmp_path: Path) -> None:
    spec = "endpoint:https://secret.org/predict?access=label&key=secret"
    changes = {
        "settings": {"hash_ids": True, "target": spec, "access": "label"},
        "target": {"spec": spec, "access": "label"},
        "target_access": "label",
    }
    data = load_report_data(write_run(tmp_path / "run", **changes))
    assert data.target == {"spec": "(hidden)", "access": "label"}
    assert data.facts["access to the target"] == data.settings["access"] == "label"
    assert "secret" not in render(data)


@pytest.mark.parametrize("spec", ["secret.csv:who", "/home/secret.csv", "^[^/]+/secret([0-9]+)"])
def test_hides_how_images_are_grouped_with_the_names(tmp_path: Path, spec: str) -> None:
    changes = {
        "settings": {"hash_ids": True, "group_by": spec},
        "inputs": {"groups": {"path": spec, "fingerprint": "f0"}},
        "split": f"private: 30 images (data); groups: 9 of 30 images in 3 groups ({spec})",
        "warnings": [f"--group-by {spec}: 21 image(s) have no group"],
    }
    data = load_report_data(write_run(tmp_path / "run", **changes))
    assert data.split.endswith("in 3 groups ((hidden))")
    assert data.warnings == ("--group-by (hidden): 21 image(s) have no group",)
    assert "secret" not in render(data)


def test_manifest_may_be_empty(run: Path) -> None:
    (run / "run.json").write_text("{}")
    assert "Ledger" in render(load_report_data(run, title="Mine"))


def test_shows_integer_labels_and_nullable_columns(tmp_path: Path) -> None:
    table = samples().assign(label=range(30)).convert_dtypes()
    assert ">29</td>" in render(load_report_data(write_run(tmp_path / "run", table)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "not a run folder"),
        ("metrics.json", None, "metrics.json is missing"),
        ("run.json", b"{", "cannot be read"),
        ("metrics.json", b"[1]", "expected named values"),
        ("samples.parquet", b"PAR1 no", "cannot be read as a Parquet table"),
        ("samples.parquet", samples().drop(columns="ddcs_best"), "expected the column ddcs_best"),
    ],
)
def test_reports_a_damaged_run_in_one_line(
    run: Path, name: str, content: bytes | pd.DataFrame | None, message: str
) -> None:
    (run / name).unlink()
    if isinstance(content, pd.DataFrame):
        content.to_parquet(run / name)
    elif content is not None:
        (run / name).write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        load_report_data(run)
    assert str(run) in str(caught.value) and "\n" not in str(caught.value)


def test_the_file_behind_a_split_is_hidden_too() -> None:
    found = without_paths(
        {
            "settings": {"private": "people/m.npz:train", "public": "people/m.npz:val"},
            "inputs": {"private": {"path": "people/m.npz:train"}},
            "split": "private: 2 images (people/m.npz:train)",
            "warnings": ["--private people/m.npz: 1 of 3 classes have no image"],
        }
    )
    assert "people" not in repr(found) and "1 of 3 classes" in repr(found)


def test_pictures_are_kept_with_a_run_that_may_show_them(tmp_path: Path) -> None:
    near = GalleryItem("p1/1.png", "p1", 4.0, 0.25, png(10), png(99))
    exposed = exposure_item("p1/1.png", low=None, high=None)
    for images in ("full", "none"):
        run = write_run(tmp_path / images, images=images)
        write_gallery(run / GALLERY, [near])
        write_gallery(run / EXPOSURE_GALLERY, [exposed])
        data = load_report_data(run)
        if images == "full":
            assert data.gallery == (near,) and data.exposure_gallery[0].with_png == exposed.with_png
            write_gallery(run / GALLERY, [])
            assert load_report_data(run).gallery == ()
        else:
            assert not data.gallery and not data.exposure_gallery
            assert "data:image/png" not in render(data)
