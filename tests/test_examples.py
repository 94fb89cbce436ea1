"""Everything in examples/ runs, and does what its comments say."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from inversight.core.config import build
from inversight.core.imaging import to_float
from inversight.core.seeding import generator
from inversight.data import Digits, load_digits, write_images
from inversight.defences import DefenceData
from inversight.embeddings import named_embedding
from inversight.models.recipes import Recipe, load_recipe
from inversight.models.target import Target, accuracy_on, target_of
from inversight.models.training import train_classifier
from inversight.priors import Prior
from inversight.settings import ATTACKS, DEFENCES, Training
from tests.documentation import parse_command

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = Training(epochs=12, batch_size=10, flip=False, validation=0.0, width=4)


@pytest.fixture(autouse=True)
def in_the_folder_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody works who has copied one of them."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))


@cache
def learned() -> tuple[Recipe, Target, Digits]:
    """Return the recipe, and what it makes of digits."""
    digits = load_digits(seed=0)
    recipe = load_recipe("recipe:train", training=Training(), image_shape=(1, 8, 8))
    return recipe, recipe.fit(digits.private, seed=0, device=torch.device("cpu")), digits


def test_recipe() -> None:
    """It passes the trial of an audit without a warning, and learns digits that it was not trained on."""
    recipe, target, digits = learned()
    assert recipe.check(digits.private, device=torch.device("cpu")) == ()
    assert accuracy_on(target, digits.private) > 0.9 and accuracy_on(target, digits.holdout) > 0.6


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(seed=0)


@pytest.fixture
def prior(digits: Digits, tmp_path: Path) -> Prior:
    """The example of a prior, built as the audit builds it."""
    write_images(tmp_path / "public", digits.public.images, digits.public.ids)
    given = {"class": "prior:Components", "public": str(tmp_path / "public"), "count": 20}
    found: Prior = build(given, {}, role="prior")
    return found


def test_prior(digits: Digits, prior: Prior) -> None:
    """Its samples have the public images' mean and principal variances, by scikit-learn's PCA."""
    assert isinstance(prior, Prior) and prior.image_shape == (1, 8, 8)
    flat = to_float(digits.public.images).flatten(1)
    known = PCA(20).fit(flat.numpy())
    unclipped: Any = prior
    drawn = unclipped.mean + prior.sample(20_000, rng=generator(0)) @ unclipped.components
    torch.testing.assert_close(drawn.mean(0), flat.mean(0), rtol=0, atol=0.01)
    along = (drawn - drawn.mean(0)) @ torch.from_numpy(known.components_).float().T
    variances = torch.from_numpy(known.explained_variance_).float()
    torch.testing.assert_close(along.var(0), variances, rtol=0.05, atol=0)
    images = prior(prior.sample(5, rng=generator(0)))
    assert images.shape == (5, 1, 8, 8) and 0 <= float(images.min()) <= float(images.max()) <= 1


def test_attack(prior: Prior) -> None:
    """Its steps raise the target's confidence over the samples that it starts from."""
    labels, (_, target, _) = torch.tensor([2, 7]), learned()

    def confidence(steps: int) -> tuple[Tensor, Tensor]:
        spec = {"class": "attack:HillClimbing", "pool": 50, "keep": 4, "steps": steps}
        attack = build(spec, ATTACKS, role="--attack")
        found = attack.run(target, prior, labels, rng=generator(0))
        assert found.labels.tolist() == [2] * 4 + [7] * 4
        own = target(found.images).softmax(1).gather(1, found.labels[:, None]).squeeze(1)
        torch.testing.assert_close(1.0 - own, found.losses)
        return own, found.losses

    (before, _), (after, losses) = confidence(1), confidence(40)
    assert float(after.mean()) > float(before.mean()) + 0.05
    assert all(bool((part.diff() >= 0).all()) for part in losses.split(4))


def test_embedding() -> None:
    """Brightness does not matter, and a ramp has the derivative of its slope."""
    edges = named_embedding("embedding:Edges", use="distance", role="--embedding", size=32)
    images = 0.5 * torch.rand(3, 3, 8, 8, generator=generator(0))
    for dark, bright in zip(edges(images), edges(images + 0.3), strict=True):
        torch.testing.assert_close(dark, bright, rtol=0, atol=1e-6)
    ramp = torch.linspace(0.0, 1.0, 32).expand(1, 1, 32, 32)
    across, down = (32 * block.view(32, 32)[:, 1:-1] for block in edges(ramp))
    torch.testing.assert_close(across, torch.full_like(across, 2 / 31 / 2))
    torch.testing.assert_close(down, torch.zeros_like(down))


def test_defence(digits: Digits) -> None:
    """It trains a quarter of the epochs, and fits the private images less closely."""
    trained = train_classifier(
        digits.private, training=SHORT, image_shape=(1, 8, 8), rng=generator(0)
    )
    undefended = target_of(trained.classifier, "undefended")
    data = DefenceData(
        digits.private, torch.zeros(len(digits.private), dtype=torch.bool), digits.public,
        (1, 8, 8), SHORT,
    )  # fmt: skip
    defence = build("defence:EarlyStopping", DEFENCES, role="--defence")
    defended = defence.fit(data, undefended, rng=generator(0))
    assert defended.facts["epochs"] == SHORT.epochs / 4
    fitted = [accuracy_on(model, digits.private) for model in (undefended, defended.target)]
    assert fitted[0] > fitted[1]


def test_run_notebooks(tmp_path: Path) -> None:
    """An output that names a folder of this machine is refused, and the file stays as it was."""
    runner = importlib.import_module("run_notebooks")
    file = tmp_path / "one.ipynb"
    cell = nbformat.v4.new_code_cell("import os; print(os.getcwd())", id="one")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    before = file.read_text()
    with pytest.raises(ValueError, match="names /"):
        runner.run(file, save=True)
    assert file.read_text() == before


@pytest.mark.parametrize("name", [file.stem for file in sorted(EXAMPLES.glob("*.ipynb"))])
def test_notebooks_are_kept_with_their_outputs(name: str) -> None:
    """All cells were run in order, once each, with one cell of parameters and without noise."""
    text = (EXAMPLES / f"{name}.ipynb").read_text()
    assert len(text) < 300_000
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [i for i, cell in enumerate(code) if "INVERSIGHT_TINY" in cell.source] == [0]
    outputs = [one for cell in code for one in cell.outputs]
    assert {one.output_type for one in outputs} <= {"stream", "display_data", "execute_result"}
    assert any("image/png" in one.get("data", {}) for one in outputs)
    assert all(one.get("name") != "stderr" for one in outputs)
    assert not re.search(r"/(home|root|tmp|Users|work)/", text)


def test_commands_in_the_headers_parse() -> None:
    lines = [
        line.strip()
        for file in EXAMPLES.glob("*.py")
        for line in (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()
        if line.strip().startswith("inversight ")
    ]
    assert len(lines) >= 6
    for line in lines:
        parse_command(line)


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in EXAMPLES.glob("*.py")} <= tested
