"""Loading a target: nothing hostile runs, every accepted form gives the model's own logits."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inversight.core.errors import TargetError
from inversight.models.loading import load_target
from inversight.models.networks import build_classifier, save_classifier
from inversight.models.spec import ModelSpec, absolute_spec
from inversight.models.target import Access, Target

CLASSES = ("a", "b", "c")


def load(spec: object, **changes: Any) -> Target:
    """Load ``spec`` for grey 8x8 images; ``changes`` go to the ModelSpec, or to load_target."""
    images: dict[str, Any] = dict(classes=CLASSES, size=8, channels=1)
    images |= {name: changes.pop(name) for name in images.keys() & changes.keys()}
    if "class_order" in changes:
        changes["classes"] = changes.pop("class_order")
    if changes.pop("size_given", False):
        changes["size"] = images["size"]
    return load_target(ModelSpec(str(spec), **changes), **images)


def refusal(spec: object, *parts: str, **changes: Any) -> None:
    with pytest.raises(TargetError) as caught:
        load(spec, **changes)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


class Small(nn.Module):
    """Logits (N, 3) of grey 8x8 images."""

    def __init__(self, channels: int = 1, outputs: int = 3) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, outputs)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def images(n: int, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(n))


# Hostile files


class Payload:
    """Unpickling this creates ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def hostile(kind: str, file: Path, marker: Path) -> None:
    if kind.startswith("pickle"):
        file.write_bytes(pickle.dumps(Payload(marker), protocol=int(kind[-1])))
        return
    if kind == "torch":
        torch.save(Payload(marker), file)
        return
    if kind == "legacy torch":
        torch.save(Payload(marker), file, _use_new_zipfile_serialization=False)
        return
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "m/data.pkl", "m/constants.pkl", "constants.pkl"):
            archive.writestr(name, pickle.dumps(Payload(marker)))
        archive.writestr("m/version", "3")


def test_the_payload_would_run(tmp_path: Path) -> None:
    hostile("torch", tmp_path / "x.pt", tmp_path / "marker")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pt2", "pth", "pkl", "bin"])
@pytest.mark.parametrize("kind", ["pickle0", "pickle2", "pickle4", "torch", "legacy torch", "zip"])
def test_hostile_files_are_refused_and_never_run(
    tmp_path: Path, kind: str, suffix: str, trust: bool
) -> None:
    file, marker = tmp_path / f"model.{suffix}", tmp_path / "marker"
    hostile(kind, file, marker)
    specs = [str(file)] + [
        f"{name}?weights={file}" for name in ("timm:resnet18", "torch.nn:Identity")
    ]
    for spec in specs:
        refusal(spec, "--target", str(file), trust=trust)
    assert not marker.exists()
    if kind in ("torch", "zip"):
        refusal(file, "pickle", "safetensors.torch.save_file", trust=trust)


@pytest.mark.parametrize("trust", [False, True])
def test_a_zip_that_looks_like_a_program_does_not_run_unless_it_is_one(
    tmp_path: Path, trust: bool
) -> None:
    """Names inside the archive get it as far as PyTorch's own loaders, and those refuse it."""
    for names in (
        ("m/code/x.py", "m/constants.pkl", "m/data.pkl"),
        ("models/model.json", "data.pkl"),
    ):
        file, marker = tmp_path / "m.pt2", tmp_path / "marker"
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, pickle.dumps(Payload(marker)))
        refusal(file, str(file), trust=trust)
        assert not marker.exists()


def test_a_folder_with_a_hostile_target_file(tmp_path: Path) -> None:
    hostile("torch", tmp_path / "target.safetensors", tmp_path / "marker")
    refusal(tmp_path, "target.safetensors", trust=True)
    assert not (tmp_path / "marker").exists()


# Programs


def program(kind: str, file: Path) -> Small:
    module = Small().eval()
    if kind == "script":
        torch.jit.save(torch.jit.script(module), str(file))
    elif kind == "trace":
        torch.jit.save(torch.jit.trace(module, images(2)), str(file))
    else:
        dynamic = {"x": {0: torch.export.Dim("n")}} if kind == "dynamic" else None
        example = images(2 if kind == "dynamic" else int(kind[-1]))
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), file)
    return module


@pytest.mark.parametrize("kind", ["script", "trace", "dynamic", "static 1", "static 3"])
def test_programs_need_trust_and_then_give_the_models_logits(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("model.pt" if kind in ("script", "trace") else "model.pt2")
    module = program(kind, file)
    refusal(file, str(file), "runs code", "--trust-target")
    target = load(file, trust=True)
    assert target.image_shape == (1, 8, 8)
    for n in (1, 2, 5):
        x = images(n)
        torch.testing.assert_close(target(x), module(x), rtol=1e-5, atol=1e-5)
        ours, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
        target(ours).square().sum().backward()
        module(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_an_exported_program_has_one_size(tmp_path: Path) -> None:
    program("static 3", tmp_path / "m.pt2")
    refusal(tmp_path / "m.pt2", "8x8", "--size 8", trust=True, size=16, size_given=True)
    # Not chosen: images of another size are resized to the program's.
    target = load(tmp_path / "m.pt2", trust=True, size=16)
    assert target.image_shape == (1, 8, 8) and target(images(2, size=16)).shape == (2, 3)


def test_programs_take_the_channels_they_were_made_for(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Small(channels=3).eval()), str(tmp_path / "m.pt"))
    target = load(tmp_path / "m.pt", trust=True, channels=1)
    assert target.image_shape == (3, 8, 8)
    grey = images(2)
    torch.testing.assert_close(target(grey), Small(channels=3)(grey.expand(-1, 3, -1, -1)))


# timm


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_gives_the_networks_own_logits(tmp_path: Path, channels: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=3, in_chans=channels, pretrained=False)
    model.eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    spec = f"timm:resnet18?weights={tmp_path / 'w.safetensors'}"
    target = load(spec, size=32, channels=channels)
    x = images(2, channels, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if channels == 1:
        mean, std = mean.mean()[None], std.mean()[None]
    normalised = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    torch.testing.assert_close(target(x), model(normalised).detach(), rtol=1e-4, atol=1e-4)
    own = load(spec, size=32, channels=channels, mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(own(x), model((x - 0.5) / 0.25).detach(), rtol=1e-4, atol=1e-4)


def test_timm_names_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    with torch.random.fork_rng(devices=[]):
        state = timm.create_model("resnet18", num_classes=3, pretrained=False).state_dict()
    save_file(state, file)
    refusal(f"timm:resnet81?weights={file}", "resnet81", "did you mean resnet", size=32)
    refusal("timm:resnet18", "?weights=FILE.safetensors", size=32)
    refusal(f"timm:resnet18?weight={file}", "did you mean weights?", size=32)
    refusal(f"timm:resnet18?weights={tmp_path / 'no.safetensors'}", "no such weights file", size=32)
    refusal(f"timm:resnet34?weights={file}", str(file), "another network", size=32)
    refusal(f"timm:resnet18?weights={file}", "3 outputs", "--classes", classes=("a", "b"), size=32)
    narrow = {**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    save_file(narrow, file)
    refusal(f"timm:resnet18?weights={file}", "layer1.0.conv1.weight", "[64, 64, 1, 1]", size=32)
    save_file({**state, "more": torch.zeros(1)}, file)
    refusal(f"timm:resnet18?weights={file}", 'Unexpected key(s) in state_dict: "more"', size=32)
    save_file({"other": torch.zeros(1)}, file)
    refusal(f"timm:resnet18?weights={file}", "fc.weight", size=32)


@pytest.mark.parametrize("damage", ["cut in the header", "cut in the tensors", "noise", "empty"])
def test_damaged_safetensors(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"fc.weight": torch.zeros(3, 512)}, file)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut in the header": whole[:20],
            "cut in the tensors": whole[:-100],
            "noise": b"\x10\0\0\0\0\0\0\0" + b"\xff" * 100,
            "empty": b"",
        }[damage]
    )
    for spec in (f"timm:resnet18?weights={file}", str(file), f"torch.nn:Identity?weights={file}"):
        refusal(spec, str(file), "safetensors")


def test_a_header_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    """A file begins with its header's length; 128 is also the first byte of a pickle."""
    file = tmp_path / "w.safetensors"
    tensor = {"head.weight": torch.ones(3, 64)}
    lengths = set()
    for n in range(0, 256, 8):
        save_file(tensor, file, metadata={"note": "x" * n})
        lengths.add(file.read_bytes()[0])
        refusal(f"torch.nn:Identity?weights={file}", "(2, K)")
    assert 0x80 in lengths


# Factories


@pytest.fixture
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes ``inversight_test_factories.py`` into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "inversight_test_factories"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + text)
        return name

    sys.modules.pop(name, None)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = before
    sys.modules.pop(name, None)


_NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear({inputs}, {outputs})
    def forward(self, x):
        return {result}
"""


def net(result: str = "self.head(x.flatten(1))", outputs: int = 3, inputs: int = 64) -> str:
    return _NET.format(result=result, outputs=outputs, inputs=inputs)


def test_a_factory_of_ones_own(module_file: Any, tmp_path: Path) -> None:
    name = module_file(
        net()
        + "def plain():\n    return Net()\n"
        + "def filled(weights):\n    from safetensors.torch import load_file\n"
        + "    net = Net()\n    net.load_state_dict(load_file(weights))\n    return net\n"
    )
    assert load(f"{name}:plain")(images(4)).shape == (4, 3)
    state = {"head.weight": torch.randn(3, 64), "head.bias": torch.randn(3)}
    save_file(state, tmp_path / "w.safetensors")
    target = load(f"{name}:filled?weights=w.safetensors")
    x = images(4)
    expected = x.flatten(1) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(target(x), expected, rtol=1e-4, atol=1e-4)
    assert not target.module.training
    assert not any(p.requires_grad for p in target.module.parameters())


def test_a_factory_of_colour_images_gets_colour(module_file: Any) -> None:
    name = module_file(net(inputs=192))
    assert load(f"{name}:Net", channels=1).image_shape == (3, 8, 8)


def test_factories_that_cannot_be_called(module_file: Any) -> None:
    name = module_file(
        "def broken():\n    raise RuntimeError('no disk')\n"
        "def number():\n    return 7\ndef needs(a):\n    return a\n"
    )
    refusal("no_such_package_here:make", "no_such_package_here", "failed")
    refusal(f"{name}:brokn", "did you mean broken?")
    refusal(f"{name}:broken", "calling it failed", "RuntimeError: no disk")
    refusal(f"{name}:needs", "calling it failed", "TypeError")
    refusal(f"{name}:number", "torch.nn.Module", "returned int")


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        (net("x"), ("(2, K)", "(2, 1, 8, 8)")),
        (net("self.head(x.flatten(1)).argmax(1)"), ("(2, K)", "(2,)")),
        (net("[self.head(x.flatten(1))]"), ("(2, K)", "list")),
        (net("self.head(x.flatten(1)) * float('nan')"), ("NaN", "--mean")),
        (net("self.head(x.flatten(1)) / 0"), ("infinity",)),
        (net("self.head(x.flatten(1)).detach()"), ("no gradient",)),
        (net(outputs=5), ("5 outputs", "3 classes", "--classes")),
        (net(inputs=100), ("failed on images of 8x8", "--size")),
    ],
)
def test_models_that_do_not_behave(module_file: Any, code: str, parts: tuple[str, ...]) -> None:
    refusal(f"{module_file(code)}:Net", *parts)


def test_a_name_that_is_neither_a_file_nor_a_factory() -> None:
    refusal("nowhere.pt", "no such file", "timm:NAME?weights=")
    refusal("./nowhere:make", "no such file")


# Class order


def test_class_order(module_file: Any, tmp_path: Path) -> None:
    name = module_file(net(outputs=4))
    order = tmp_path / "order.txt"
    order.write_text("d\nc\n\n b \na\n")
    target = load(f"{name}:Net", class_order=order)
    assert target.classes == ("d", "c", "b", "a") and target.num_classes == 4
    order.write_text("d\nc\nb\ne\n")
    refusal(f"{name}:Net", "class a of --private", str(order), class_order=order)
    order.write_text("a\nb\nc\n")
    refusal(f"{name}:Net", "4 outputs", "3 classes", class_order=order)
    order.write_text("a\nb\nc\na\n")
    refusal(f"{name}:Net", "names a twice", class_order=order)
    order.write_text("\n")
    refusal(f"{name}:Net", "is empty", class_order=order)
    order.write_bytes(b"\xff\xfe\xff")
    refusal(f"{name}:Net", str(order), "cannot be read", class_order=order)
    refusal(f"{name}:Net", "cannot be read", class_order=tmp_path / "none.txt")


def test_normalisation_must_fit_the_channels(tmp_path: Path) -> None:
    save_own(tmp_path / "t.safetensors")
    refusal(tmp_path / "t.safetensors", "1 channel(s)", "--mean has 3", mean=(0.1, 0.2, 0.3))


# Access


def test_restricted_access_gives_no_gradients() -> None:
    target = Target(Small(), CLASSES, (1, 8, 8), (0.5,), (0.5,), "small")
    x = images(5).requires_grad_(True)
    logits = target(x)
    assert logits.requires_grad
    scores = target.restricted(Access.SCORES)(x)
    label = target.restricted(Access.LABEL)(x)
    assert not scores.requires_grad and not label.requires_grad
    torch.testing.assert_close(scores, logits.detach().log_softmax(1))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(5))
    assert torch.equal(label, torch.eye(3)[logits.argmax(1)])
    assert target.restricted(Access.LABEL).restricted(Access.WHITE_BOX)(x).requires_grad


# What inversight wrote


def save_own(file: Path, channels: int = 1) -> Any:
    saved = build_classifier(
        "resnet",
        classes=CLASSES,
        image_shape=(channels, 8, 8),
        width=4,
        mean=(0.3,) * channels,
        std=(0.2,) * channels,
        rng=torch.Generator().manual_seed(1),
    )
    save_classifier(saved, file)
    return saved


@pytest.mark.parametrize("channels", [1, 3])
def test_a_trained_classifier_comes_back_from_its_file_and_folder(
    tmp_path: Path, channels: int
) -> None:
    saved = save_own(tmp_path / "target.safetensors", channels)
    x = images(3, channels, 8)
    expected = saved.module.eval()((x - 0.3) / 0.2).detach()
    for spec in (tmp_path, tmp_path / "target.safetensors"):
        target = load(spec, classes=("c", "a"), size=20, channels=3)
        assert target.classes == CLASSES and target.image_shape == (channels, 8, 8)
        torch.testing.assert_close(target(x), expected)
    refusal(tmp_path, "class z of --private", classes=("a", "z"))
    refusal(f"{tmp_path}?weights={tmp_path / 'target.safetensors'}", "takes no ?weights=")


def test_own_files_that_do_not_fit(tmp_path: Path) -> None:
    refusal(tmp_path, "target.safetensors", "inversight train")
    file = tmp_path / "target.safetensors"
    save_file({"fc.weight": torch.zeros(3, 3)}, file)
    refusal(file, "not written by `inversight train`", f"timm:resnet18?weights={file}")
    for facts in ("{}", "not json", '{"architecture": "mlp"}', "[]"):
        save_file({"x": torch.zeros(1)}, file, metadata={"inversight.classifier": facts})
        refusal(file, str(file), "do not fit")


def test_absolute_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"")
    assert absolute_spec("model.pt2") == f"{tmp_path}/model.pt2"
    assert absolute_spec("timm:resnet18?weights=w") == f"timm:resnet18?weights={tmp_path}/w"
    assert absolute_spec("pkg.mod:net") == "pkg.mod:net"
    assert absolute_spec("pkg.mod:net?weights=/a/b") == "pkg.mod:net?weights=/a/b"
