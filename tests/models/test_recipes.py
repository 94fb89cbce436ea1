"""Recipes: what each trains on, what a seed decides, and how a wrong one of the user's is refused."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import loky  # noqa: F401  (makes its start method known)
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from inversight.core.errors import ConfigError, StageError
from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.models.function_recipe import FunctionRecipe
from inversight.models.own_training import TrainingImages, few_of_each_class
from inversight.models.recipes import Recipe, TrainingRecipe, load_recipe
from inversight.models.target import Target, accuracy_on
from inversight.models.training import train_classifier
from inversight.settings import Training
from tests.refusals import refused

CPU = torch.device("cpu")
QUICK = Training(width=4, epochs=4, batch_size=8, warmup_epochs=1, flip=False, rotation=0.0)


def two_classes(n: int = 10, channels: int = 1, size: int = 8) -> ImageSet:
    """Bright on the left, or bright on the right."""
    images = 0.1 * torch.rand(2 * n, channels, size, size, generator=generator(0))
    images[:n, :, :, : size // 2] += 0.8
    images[n:, :, :, size // 2 :] += 0.8
    labels, ids = ["left"] * n + ["right"] * n, [f"{i:03d}" for i in range(2 * n)]
    return image_set((images * 255).to(torch.uint8), labels, ids, ("left", "right"))


IMAGES = two_classes()


def same(*targets: Target) -> bool:
    one, other = (t.module.state_dict() for t in targets)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_seed_decides(recipe: Recipe) -> None:
    """Assert that one seed gives one model, whatever the random state before."""
    torch.manual_seed(1)
    one = recipe.fit(IMAGES, seed=3, device=CPU)
    torch.manual_seed(2)
    again = recipe.fit(IMAGES, seed=3, device=CPU)
    assert same(one, again) and not same(one, recipe.fit(IMAGES, seed=4, device=CPU))
    assert not one.module.training and not any(p.requires_grad for p in one.module.parameters())


# This package's own training


def test_own_training_is_of_every_image_to_the_last_epoch() -> None:
    """Whatever the settings say of a validation split."""
    recipe = load_recipe(None, training=QUICK, image_shape=(1, 8, 8))
    assert isinstance(recipe, TrainingRecipe) and recipe.check(IMAGES, device=CPU) == ()
    assert_seed_decides(recipe)
    notes: list[tuple[int, int]] = []
    target = recipe.fit(
        IMAGES, seed=3, device=CPU, progress=lambda done, total, note="": notes.append((done, total))
    )  # fmt: skip
    assert notes[-1] == (4, 4) and target.classes == IMAGES.classes
    plain = train_classifier(
        IMAGES, training=replace(QUICK, validation=0.0), image_shape=(1, 8, 8), rng=generator(3)
    )
    torch.testing.assert_close(
        target.module.state_dict(), plain.classifier.module.state_dict(), atol=1e-4, rtol=1e-3
    )
    assert "resnet" in recipe.description


def test_own_training_learns_at_the_size_of_the_network() -> None:
    recipe = TrainingRecipe(replace(QUICK, epochs=12), (3, 16, 16))
    target = recipe.fit(IMAGES, seed=0, device=CPU)
    assert target.image_shape == (3, 16, 16) and accuracy_on(target, IMAGES) == 1.0


# A function of the owner's


class Net(nn.Module):
    """Logits of images whose mean is subtracted, of any size and 1 channel."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.conv(x).relu(), (1, 2)).flatten(1))


def train(dataset: Any, *, classes: Sequence[str], seed: int, device: torch.device) -> nn.Module:
    """A plain training with PyTorch's, numpy's and Python's random numbers."""
    print("training")
    model = Net(len(classes)).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5 + 0.01 * random.random())
    for _ in range(3 + np.random.randint(2)):
        for images, labels in DataLoader(dataset, batch_size=8, shuffle=True):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


def fresh(*_: Any, **given: Any) -> nn.Module:
    return Net(len(given["classes"]))


def changed(change: Callable[[nn.Module], object]) -> Callable[..., object]:
    """Return a recipe that returns what ``change`` makes of a new module."""
    return lambda dataset, *, classes, seed, device: change(Net(len(classes)))


class Squeezed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Probabilities(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x))


class Cut(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


KEPT = Net(2)
LEFT_BY_ITS_LAST_CALL: list[Tensor] = []


def keeping(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    nn.init.normal_(KEPT.head.weight)
    return KEPT


def resuming(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    """Goes on where the last call ended."""
    model = Net(2)
    with torch.no_grad():
        LEFT_BY_ITS_LAST_CALL.append(model.head.weight.sum())
        model.head.weight += sum(LEFT_BY_ITS_LAST_CALL)
    return model


def by_clock(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    torch.manual_seed(time.perf_counter_ns())
    return Net(2)


def always_zero(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    torch.manual_seed(0)
    return Net(2)


def filling_batches(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    """Needs as many images as fill a batch."""
    for _images, _labels in DataLoader(dataset, batch_size=64, drop_last=True):
        last = Net(2)
    return last


def raising(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    return Net(2)(torch.zeros(1, 3, 8, 8))  # the line of the test below


def exiting(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    raise SystemExit(2)


def with_workers(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    for _ in DataLoader(Broken(dataset), num_workers=1):
        pass
    return Net(2)


def with_good_workers(dataset: Any, *, classes: Any, seed: Any, device: Any) -> nn.Module:
    assert len(list(DataLoader(dataset, batch_size=20, num_workers=1))) == 1
    return Net(2)


class Broken(torch.utils.data.Dataset[int]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        raise KeyError("no such transform")


def spoil(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, float("nan"))


module_and_history = changed(lambda model: (model, [0.1]))
nothing = changed(lambda model: None)
too_many = changed(lambda model: Net(3))
not_a_number = changed(lambda model: model.apply(spoil))
squeezed = changed(lambda model: Squeezed(2))
cut = changed(lambda model: Cut(2))
too_large = changed(lambda model: nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten()))
probabilities = changed(lambda model: Probabilities(2))
dropping = changed(lambda model: Dropping(2))


def own(name: str, **more: Any) -> FunctionRecipe:
    recipe = load_recipe(f"{__name__}:{name}", training=QUICK, image_shape=(1, 8, 8), **more)
    assert isinstance(recipe, FunctionRecipe) and isinstance(recipe, Recipe)
    return recipe


def test_own_function_trains_on_float_images_and_labels() -> None:
    """Grey images become colour, of the target's size, exactly as the target's input does."""
    dataset = TrainingImages(IMAGES, (3, 16, 16))
    image, label = dataset[13]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 1
    assert len(dataset) == len(list(iter(DataLoader(dataset)))) == 20
    expected = IMAGES.select(torch.tensor([13])).floats(size=16, channels=3)[0]
    assert torch.equal(image, expected) and 0.0 <= float(image.min()) <= float(image.max()) <= 1.0


def test_own_function_is_decided_by_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """By the random states of torch, numpy and random too, which are left as they were."""
    recipe = own("train")
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert_seed_decides(recipe)
    recipe.fit(IMAGES, seed=2**62, device=CPU)
    random_state = random.getstate()
    torch.manual_seed(2)
    assert before[2] == random_state and np.array_equal(before[1], np.random.get_state()[1])
    shown = capsys.readouterr()
    assert not shown.out and "training" in shown.err
    state = torch.get_rng_state()
    recipe.fit(IMAGES, seed=0, device=CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_own_function_learns_and_passes_its_trial() -> None:
    recipe = pickle.loads(pickle.dumps(own("train")))
    assert recipe.check(IMAGES, device=CPU) == ()
    assert accuracy_on(recipe.fit(IMAGES, seed=0, device=CPU), IMAGES) == 1.0
    assert recipe.description == f"{__name__}:train on images of 8x8"


def test_mean_and_std_are_applied_once() -> None:
    target = own("train", mean=(0.3,), std=(0.2,)).fit(IMAGES, seed=0, device=CPU)
    x = IMAGES.floats()
    torch.testing.assert_close(target(x), target.module((x - 0.3) / 0.2))
    plain = own("train").fit(IMAGES, seed=0, device=CPU)
    assert torch.equal(plain(x), plain.module(x)) and same(target, plain)  # trained on the same


def test_restores_threads_default_type_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(dataset: Any, **_: Any) -> nn.Module:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.set_grad_enabled(False)
        return Net(2).float().requires_grad_(True)

    monkeypatch.setitem(globals(), "careless", careless)
    threads = torch.get_num_threads()
    own("careless").fit(IMAGES, seed=0, device=CPU)
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("module_and_history", ("torch.nn.Module, found tuple", "return the module alone")),
        ("nothing", ("torch.nn.Module, found NoneType",)),
        ("too_many", ("gives (2, 3)", "expected logits (images, classes) = (2, 2)")),
        ("squeezed", ("gives (2,)", "(1, 2)")),
        ("not_a_number", ("NaN or infinity", "diverge")),
        ("cut", ("no gradient with respect to its input",)),
        ("too_large", ("failed on images of 1x8x8", "Kernel size")),
        ("raising", ("RuntimeError: Given groups=1", "test_recipes.py:")),
        ("exiting", ("SystemExit: 2", "test_recipes.py:")),
        ("with_workers", ("KeyError: 'no such transform'", "test_recipes.py:")),
        ("keeping", ("changed the module that it had returned before", "make a new module")),
    ],
)
def test_a_recipe_that_fails_is_refused_before_a_run_and_ends_one(
    name: str, parts: tuple[str, ...]
) -> None:
    recipe = own(name)
    with refused(f"--recipe {__name__}:{name}: ", *parts):
        recipe.check(IMAGES, device=CPU)
    if name not in ("keeping", "with_workers"):
        with refused(f"--recipe {__name__}:{name}: ", *parts, error=StageError):
            recipe.fit(IMAGES, seed=1, device=CPU)


def test_names_the_innermost_line_of_the_users_own_code() -> None:
    lines = Path(__file__).read_text().splitlines()
    line = 1 + next(
        i
        for i, text in enumerate(lines)
        if "super().forward" not in text and "self.head(F." in text
    )
    with refused(f"test_recipes.py:{line})"):
        own("raising").check(IMAGES, device=CPU)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("by_clock", "one seed gave two models"),
        ("resuming", "nothing that an earlier call left, such as a checkpoint"),
        ("always_zero", "two seeds gave the same model"),
        ("probabilities", "return logits"),
        ("dropping", "change from call to call"),
    ],
)
def test_what_is_odd_is_said_and_not_refused(name: str, part: str) -> None:
    (warning,) = own(name).check(IMAGES, device=CPU)
    assert part in warning and "\n" not in warning and f"{__name__}:{name}" in warning


def test_a_recipe_that_needs_more_images_than_the_trial_has() -> None:
    (warning,) = own("filling_batches").check(two_classes(40), device=CPU)
    assert "UnboundLocalError" in warning and "with 32 images but not with 80" in warning
    with refused("UnboundLocalError"):
        own("filling_batches").check(IMAGES, device=CPU)


def test_the_trial_has_images_of_every_class() -> None:
    few = few_of_each_class(two_classes(30), 6)
    assert few.ids == ("000", "001", "002", "030", "031", "032")
    assert len(few_of_each_class(IMAGES, 99)) == len(IMAGES)


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_dataloader_has_workers_inside_a_worker_of_loky() -> None:
    """Those of the run, in which the start method is loky's, with which a DataLoader fails."""
    multiprocessing.set_start_method("loky", force=True)
    try:
        with pytest.raises(AttributeError, match="env"):
            list(DataLoader(TrainingImages(IMAGES, (1, 8, 8)), num_workers=1))
        own("with_good_workers").fit(IMAGES, seed=0, device=CPU)
        assert multiprocessing.get_start_method() == "loky"
    finally:
        multiprocessing.set_start_method(None, force=True)


def test_a_script_that_exits_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that reads the command line outside of a function."""
    (tmp_path / "exits.py").write_text(
        "import argparse\nargparse.ArgumentParser().parse_args(['-x'])"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with refused("importing exits failed (SystemExit: 2)", error=ConfigError):
        load_recipe("exits:train", training=QUICK, image_shape=(1, 8, 8))


no_function = 3


def old_signature(dataset: Any, classes: Any, epochs: int) -> nn.Module:
    raise AssertionError


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (f"{__name__}:tran", ("has no tran", "did you mean train?")),
        (f"{__name__}:no_function", ("expected def train(dataset, *, classes, seed, device)", "int")),
        (f"{__name__}:old_signature", ("old_signature(dataset, classes, epochs)", "expected def train")),
        ("no.such.module:train", ("importing no.such.module failed", "ModuleNotFoundError")),
        ("train", ("expected package.module:train",)),
        ("scripts/fit.py:run", ("expected package.module:train", "give scripts.fit:run")),
        ("./fit:run", ("expected package.module:train",)),
        (f"{__name__}:train?weights=x", ("a function takes no ?weights=x",)),
    ],
)  # fmt: skip
def test_wrong_specs_are_refused(spec: str, parts: tuple[str, ...]) -> None:
    with refused(f"--recipe {spec}", *parts, error=ConfigError):
        load_recipe(spec, training=QUICK, image_shape=(1, 8, 8))


@pytest.mark.parametrize("spec", ["timm:resnet18", f"{__name__}:train"])
def test_normalisation_of_another_number_of_channels_is_refused(spec: str) -> None:
    with refused("1 channel(s)", "--mean has 3 numbers", error=ConfigError):
        load_recipe(spec, training=QUICK, image_shape=(1, 8, 8), mean=(0.1, 0.2, 0.3))
