"""What is loaded for what is asked: PyTorch takes seconds, which a help text is not worth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

import inversight
from inversight.cli.launch import wait_passively
from inversight.settings import AuditSettings

HEAVY = ("torch", "torchvision", "pandas", "scipy", "sklearn", "matplotlib", "timm")
"""Packages that take half a second and more."""


def loaded(code: str) -> set[str]:
    """Packages that a new interpreter has loaded after ``code``."""
    printing = "import sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{printing}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_typing_errors_and_settings_load_nothing_heavy() -> None:
    code = """
import contextlib, sys
from inversight.cli import main
from inversight.settings import resolve
resolve({})
for words in ["--help"], ["audit", "--help"], ["audit", "--privat", "x"]:
    with contextlib.suppress(SystemExit):
        main(words)
"""
    assert not loaded(code) & set(HEAVY)


def test_threads_wait_passively_in_the_command_line_alone() -> None:
    """GNU's OpenMP reads the environment when it is loaded, so it has to be set before PyTorch is."""
    code = """
import contextlib, os, sys
import inversight, inversight.cli
assert "OMP_WAIT_POLICY" not in os.environ
with contextlib.suppress(SystemExit):
    inversight.cli.main(["--help"])
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and "torch" not in sys.modules
"""
    own = ("OMP_", "KMP_", "GOMP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_threads_wait_is_the_users_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "7"})
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    wait_passively()
    assert os.environ == {name: "7"}


def test_importing_audit_loads_no_rarely_used_packages() -> None:
    found = loaded("import inversight.pipeline.audit")
    assert "torch" in found and not found & {"torchvision", "sklearn", "timm", "cmaes"}


def test_package_exports_all_its_names() -> None:
    for name in inversight.__all__:
        assert getattr(getattr(inversight, name), "__name__", name) == name
    assert set(inversight.__all__) <= set(dir(inversight))
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        inversight.audits  # noqa: B018


def members(annotation: Any) -> set[Any]:
    """Return the alternatives of a type, without constraints on their values."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {one for part in get_args(annotation) for one in members(part)}
    return {annotation}


def test_an_audit_takes_every_setting_by_name_and_type() -> None:
    """So that an editor completes them, and settings and arguments cannot drift apart."""
    module = sys.modules[inversight.audit.__module__]
    arguments = get_type_hints(inversight.audit, vars(module))
    settings = get_type_hints(AuditSettings, vars(sys.modules[AuditSettings.__module__]))
    assert arguments.keys() - {"out", "reporter", "return"} == settings.keys()
    looser = {str, type(None), Mapping[str, Any]}
    for name, kind in settings.items():
        taken, needed = members(arguments[name]), members(kind)
        tuples = {one for one in needed if get_origin(one) is tuple}
        sequences = {Sequence[get_args(one)[0]] for one in tuples} | tuples
        single = {one for one in needed if get_origin(one) not in (tuple, dict)}
        if name in ("attack", "budget"):  # parts may be mappings; numbers are checked by pydantic
            continue
        assert single <= taken, name
        assert taken - single <= looser | sequences, name
