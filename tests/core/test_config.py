"""Settings: validation in one line, merging, YAML, import paths."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from inversight.core import config
from inversight.core.errors import ConfigError
from tests.data.files import save
from tests.refusals import refused


@config.settings
class Inner:
    """Inside."""

    steps: Annotated[int, Field(ge=1)] = 10
    """How many steps."""
    share: config.Fraction = 0.5
    """A share."""


@config.settings
class Outer:
    """Outside."""

    name: str = "x"
    """What it is called."""
    where: Path | None = None
    """A folder."""
    mean: tuple[float, ...] | None = None
    """Numbers."""
    inner: Inner = Field(default_factory=Inner)
    """The inner settings."""


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"nam": "y"}, ("unknown setting nam", "did you mean name?")),
        ({"inner": {"step": 3}}, ("unknown setting inner.step", "did you mean steps?")),
        ({"inner": {"steps": 0}}, ("inner.steps:", "greater than or equal to 1", "found 0")),
        ({"inner": {"share": 1.5}}, ("inner.share:", "1.5")),
        ({"inner": {"steps": "many"}}, ("inner.steps:", "'many'")),
    ],
)
def test_names_unknown_settings_and_wrong_values(
    values: dict[str, object], parts: tuple[str, ...]
) -> None:
    with refused("here: ", *parts, error=ConfigError):
        config.from_mapping(Outer, values, where="here: ")


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        Inner().steps = 3  # type: ignore[misc]
    with pytest.raises((TypeError, ValidationError)):
        Inner(3)  # type: ignore[misc]


@given(
    steps=st.integers(1, 10**6),
    share=st.floats(0, 1),
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20),
    mean=st.none() | st.lists(st.floats(-10, 10), min_size=1, max_size=3).map(tuple),
)
@example(steps=1, share=0.0, name="\xa0", mean=None)
@example(steps=1, share=0.0, name="a\u2028b", mean=None)
def test_printed_settings_read_back_the_same(
    steps: int, share: float, name: str, mean: tuple[float, ...] | None
) -> None:
    value = Outer(name=name, mean=mean, where=Path("a/b"), inner=Inner(steps=steps, share=share))
    text = config.documented_yaml(value)
    assert config.from_mapping(Outer, yaml.safe_load(text)) == value
    assert config.from_mapping(Outer, config.to_mapping(value)) == value
    for meaning in ("How many steps.", "What it is called.", "The inner settings."):
        assert f"# {meaning}" in text


def test_merge_goes_key_by_key() -> None:
    base = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert config.merge(base, {"b": {"d": {"f": 4}}, "g": 5}) == {
        "a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}, "g": 5,
    }  # fmt: skip
    assert config.merge(base, {"b": 7}) == {"a": 1, "b": 7}
    assert base == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}


def test_assignments() -> None:
    assert config.parse_assignment("prior.steps=500") == {"prior": {"steps": 500}}
    assert config.parse_assignment("a=[1, 2]") == {"a": [1, 2]}
    assert config.parse_assignment("a.b.c=x=y") == {"a": {"b": {"c": "x=y"}}}
    for text in ("steps", "=5", "a=[1"):
        with refused(f"--set {text}"):
            config.parse_assignment(text)


def test_configuration_files(tmp_path: Path) -> None:
    file = save(b"# nothing\n", tmp_path / "c.yaml")
    assert config.read_yaml(file) == {}
    save(b"a: {b: 1}\n", file)
    assert config.read_yaml(file) == {"a": {"b": 1}}
    for content in (b"- 1\n- 2\n", b"just words", b"a: [1", b"\xff\xfe", b"1: 2\n"):
        with refused(f"--config {file}"):
            config.read_yaml(save(content, file))
    with refused("--config", "cannot be read"):
        config.read_yaml(tmp_path / "none.yaml")


def test_nearest() -> None:
    assert config.nearest("stpes", ["steps", "width"]) == "; did you mean steps?"
    assert config.nearest("qqqq", ["steps", "width"]) == ""


def test_import_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "inversight_test_parts"
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / f"{name}.py").write_text("class Outer:\n    class Inner:\n        pass\n")
    assert config.import_object(f"{name}:Outer.Inner", role="--prior").__name__ == "Inner"
    (tmp_path / "inversight_test_broken.py").write_text("raise ValueError('first\\nsecond')\n")
    for path, expected in (
        (f"{name}:Outr", "has no Outr; did you mean Outer?"),
        *((path, "expected package.module:Name") for path in ("plain", ":x", "module:")),
        ("inversight_test_broken:x", "ValueError: first)"),
    ):
        with refused(f"--prior {path}: ", expected):
            config.import_object(path, role="--prior")
    sys.modules.pop(name, None)


def test_build_known_parts() -> None:
    known = {"inner": f"{__name__}:Inner"}
    assert config.build("inner", known, role="--part") == Inner()
    assert config.build({"class": "inner", "steps": 3}, known, role="--part") == Inner(steps=3)
    assert config.build("fractions:Fraction", known, role="--part") == 0
    wrong: list[tuple[str | dict[str, object], str]] = [
        ("iner", "--part iner: expected one of inner, package.module:Class; did you mean inner?"),
        ({"class": "inner", "stps": 3}, "inner: unknown setting stps; did you mean steps?"),
        ({"steps": 3}, "'class'"),
        ({"class": "fractions:Fraction", "nonsense": 1}, "could not be built"),
    ]
    for spec, expected in wrong:
        with refused("--part", expected):
            config.build(spec, known, role="--part")


def test_inherited_settings_keep_their_meaning() -> None:
    @config.settings
    class Further(Inner):
        """Further inside."""

        share: config.Fraction = 0.25
        """Another share."""
        more: int = 1
        """More."""

    text = config.documented_yaml(Further())
    assert text.splitlines() == [
        "# How many steps.", "steps: 10", "# Another share.", "share: 0.25", "# More.", "more: 1",
    ]  # fmt: skip
    assert "# A share." in config.documented_yaml(Inner())
    with refused("did you mean steps?"):
        config.from_mapping(Further, {"stps": 1})
