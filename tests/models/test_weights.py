"""Weights files: prefixes of wrappers, keys of checkpoints, several sets in one file, tied weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from inversight.core.errors import TargetError
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec, absolute_spec
from inversight.models.target import Target
from tests.models.test_target import CLASSES, Small, images, timm_model
from tests.refusals import refused

State = dict[str, Tensor]


def make() -> nn.Module:
    """A factory that loads no weights itself."""
    return Small()


def shifted(by: float) -> Small:
    module = Small()
    module.head.bias.data += by
    return module


def load(file: Path, factory: str = "make", key: str = "", size: int = 8, **more: Any) -> Target:
    name = factory if ":" in factory else f"{__name__}:{factory}"
    spec = f"{name}?weights={file}" + (f"&key={key}" if key else "")
    return load_target(ModelSpec(spec), classes=CLASSES, size=size, channels=1, **more)


def behind(prefix: str, module: nn.Module) -> State:
    return {prefix + name: value for name, value in module.state_dict().items()}


class Wrapper(nn.Module):
    """What a training framework keeps a network in."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


WRAPPERS: dict[str, Callable[[nn.Module], State]] = {
    "plain": lambda m: m.state_dict(),
    "DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "compile": lambda m: torch.compile(m).state_dict(),
    "compile inside": lambda m: {
        k.replace("conv.", "conv._orig_mod."): v for k, v in m.state_dict().items()
    },
    "Lightning": lambda m: behind("model.", m),
    "nested": lambda m: nn.DataParallel(torch.compile(Wrapper(m))).state_dict(),
    "averaged": lambda m: AveragedModel(m).state_dict(),
}
KEYS: dict[str, Callable[[State], Any]] = {
    "alone": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "global_step": 7, "best": torch.tensor(0.9)},
    "model": lambda s: {"model": s, "optimizer": optimiser_state(), "args": None},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.1},
    "ema": lambda s: {"ema": {"shadow": s}},
    "Lightning": lambda s: {
        "epoch": 3, "pytorch-lightning_version": "2.4.0", "state_dict": s, "callbacks": {},
        "optimizer_states": [optimiser_state()], "lr_schedulers": [], "hyper_parameters": {"lr": 0.1},
    },
}  # fmt: skip


def optimiser_state() -> dict[str, Any]:
    module = Small()
    optimiser = torch.optim.Adam(module.parameters())
    module(images(2)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_checkpoints_load_by_their_own_names(tmp_path: Path, wrapper: str, key: str) -> None:
    module = shifted(0.5)
    torch.save(KEYS[key](WRAPPERS[wrapper](module)), tmp_path / "last.ckpt")
    said: list[str] = []
    target = load(tmp_path / "last.ckpt", warn=said.append)
    torch.testing.assert_close(target(images(4)), module(images(4)).detach())
    assert len(said) == (wrapper == "averaged") and all("n_averaged" in text for text in said)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_same_prefixes_in_safetensors(tmp_path: Path, wrapper: str) -> None:
    module, file = shifted(0.5), tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in WRAPPERS[wrapper](module).items()}, file)
    target = load(file, warn=lambda text: None)
    torch.testing.assert_close(target(images(4)), module(images(4)).detach())


@pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:resnet18"])
def test_libraries_networks_load_from_checkpoints(tmp_path: Path, spec: str) -> None:
    name = spec.partition(":")[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm_model(name) if spec.startswith("timm") else torchvision.models.get_model(
            name, weights=None, num_classes=3
        ).eval()  # fmt: skip
    state = nn.DataParallel(model).state_dict()
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "w.pth")
    x = images(2, 3, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = model((x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).detach()
    target = load(tmp_path / "w.pth", spec, size=32)
    torch.testing.assert_close(target(x), expected, atol=1e-5, rtol=1e-5)


def test_torchvisions_names_and_weights_are_checked(tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "w.pth")
    for spec, *parts in (
        ("torchvision:resnet81", "no such classifier", "did you mean resnet"),
        ("torchvision:fcn_resnet50", "no such classifier"),
        ("torchvision:resnet18", "does not fit the network", "another"),
    ):
        with refused(*parts, error=TargetError):
            load(tmp_path / "w.pth", spec)
    with refused("needs its trained weights", error=TargetError):
        load_target(ModelSpec("torchvision:resnet18"), classes=CLASSES, size=8, channels=1)


SEVERAL: dict[str, tuple[Callable[[Small, Small], Any], str, str, str]] = {
    "model and ema": (
        lambda a, b: {"model": a.state_dict(), "ema": b.state_dict()},
        "model, ema", "ema", "model",
    ),
    "timm": (
        lambda a, b: {"state_dict": a.state_dict(), "state_dict_ema": b.state_dict()},
        "state_dict, state_dict_ema", "ema", "state_dict",
    ),
    "student and teacher": (
        lambda a, b: {"state_dict": {**behind("student.", a), **behind("module.teacher.", b)}},
        "state_dict.module.teacher, state_dict.student", "teacher", "student",
    ),
    "inside": (lambda a, b: {**a.state_dict(), **behind("ema.", b)}, "top, ema", "ema", "top"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_sets_one_is_named(tmp_path: Path, kind: str) -> None:
    contents, listed, second, first = SEVERAL[kind]
    a, b, file = shifted(0.5), shifted(2.0), tmp_path / "w.pth"
    torch.save(contents(a, b), file)
    with refused(f"2 sets of weights that fit: {listed}", "&key=", error=TargetError):
        load(file)
    for key, module in ((first, a), (second, b)):
        torch.testing.assert_close(load(file, key=key)(images(4)), module(images(4)).detach())
    with refused("below nowhere; it has", listed, error=TargetError):
        load(file, key="nowhere")


def test_tensors_beside_a_network_are_named_when_left_out(tmp_path: Path) -> None:
    torch.save(behind("model.", Small()) | {"criterion.weight": torch.ones(3)}, tmp_path / "w.pth")
    said: list[str] = []
    load(tmp_path / "w.pth", warn=said.append)
    assert len(said) == 1 and "1 tensor(s)" in said[0] and "criterion.weight" in said[0]


class Tied(nn.Module):
    """A network whose two layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


def tied() -> nn.Module:
    return Tied()


def test_tied_weights_are_loaded_from_one_name(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Tied()
    save_model(module, str(tmp_path / "w.safetensors"))
    assert len(load_file(tmp_path / "w.safetensors")) == 5  # of 6 tensors
    target = load(tmp_path / "w.safetensors", "tied")
    torch.testing.assert_close(target(images(4)), module(images(4)).detach())


def test_half_weights_are_loaded(tmp_path: Path) -> None:
    module = Small().to(torch.bfloat16)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    torch.testing.assert_close(
        load(tmp_path / "w.pth")(images(4)), module.float()(images(4)).detach()
    )


def test_what_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"state_dict": Small().state_dict(), "args": argparse.Namespace(lr=1)}, file)
    with refused(str(file), "argparse.Namespace", "safetensors.torch.save_file", error=TargetError):
        load(file)
    torch.save(Small(), file)
    with refused("safetensors.torch.save_file", error=TargetError):
        load(file)
    torch.save([1, 2], file)
    with refused("no tensors by name", error=TargetError):
        load(file)
    torch.save({"other": torch.ones(1)}, file)
    with refused("does not fit the network", "conv.weight", error=TargetError):
        load(file)


def test_a_bare_checkpoint_says_how_to_name_its_network(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(Small().state_dict(), file)
    parts = (f"timm:resnet18?weights={file}", f"package.module:factory?weights={file}")
    with refused("weights without their network", *parts, error=TargetError):
        load_target(ModelSpec(str(file)), classes=CLASSES, size=8, channels=1)


def test_a_key_needs_weights(tmp_path: Path) -> None:
    with refused("expected ?weights=FILE", error=TargetError):
        load_target(ModelSpec("timm:resnet18?key=ema"), classes=CLASSES, size=8, channels=1)
    spec = absolute_spec("timm:resnet18?weights=w&key=ema")
    assert spec == f"timm:resnet18?weights={Path('w').absolute()}&key=ema"


def test_timms_ema_is_named(tmp_path: Path) -> None:
    models = [timm.create_model("test_resnet", num_classes=3).eval() for _ in range(2)]
    torch.save(dict(zip(("model", "model_ema"), (m.state_dict() for m in models), strict=True)),
               tmp_path / "w.pth")  # fmt: skip
    target = load(tmp_path / "w.pth", "timm:test_resnet", key="ema", size=32)
    for ours, theirs in zip(target.module.parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
