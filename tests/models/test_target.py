"""Loading a target: nothing hostile runs, every accepted form gives the model's own logits."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inversight.core.errors import TargetError
from inversight.core.seeding import generator
from inversight.models.loading import load_target
from inversight.models.networks import build_classifier, save_classifier
from inversight.models.spec import ModelSpec, absolute_spec
from inversight.models.target import Access, Target
from tests.refusals import refused

CLASSES = ("a", "b", "c")


def load(
    spec: object, *, classes: tuple[str, ...] = CLASSES, size: int = 8, channels: int = 1,
    class_order: Path | None = None, given_size: int | None = None, **model: Any,
) -> Target:  # fmt: skip
    """Load ``spec`` for grey 8x8 images of three classes."""
    given = ModelSpec(str(spec), classes=class_order, size=given_size, **model)
    return load_target(given, classes=classes, size=size, channels=channels)


def assert_refused(spec: object, *parts: str, **changes: Any) -> None:
    """Assert that loading fails with one line that has these parts."""
    with refused(*parts, error=TargetError):
        load(spec, **changes)


class Small(nn.Module):
    """Logits (N, 3) of grey 8x8 images."""

    def __init__(self, channels: int = 1, outputs: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, outputs)
        rng = generator(5)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def images(n: int, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(n))


# Hostile files


class Payload:
    """Unpickling this creates ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


ZIPS = {
    "zip": ("data.pkl", "m/data.pkl", "m/constants.pkl", "constants.pkl"),
    "zip like TorchScript": ("m/code/x.py", "m/constants.pkl", "m/data.pkl"),
    "zip like torch.export": ("models/model.json", "data.pkl"),
}
"""Names in archives. Some get as far as PyTorch's own loaders, and those refuse them."""


def hostile(kind: str, file: Path, marker: Path) -> None:
    payload = Payload(marker)
    if kind.startswith("pickle"):
        file.write_bytes(pickle.dumps(payload, protocol=int(kind[-1])))
    elif kind.endswith("torch"):
        torch.save(payload, file, _use_new_zipfile_serialization=kind == "torch")
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ZIPS[kind]:
                archive.writestr(name, pickle.dumps(payload))
            archive.writestr("m/version", "3")


def test_payload_runs_if_it_is_unpickled(tmp_path: Path) -> None:
    hostile("torch", tmp_path / "x.pt", tmp_path / "marker")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pt2", "pth", "pkl", "bin"])
@pytest.mark.parametrize("kind", ["pickle0", "pickle2", "pickle4", "torch", "legacy torch", *ZIPS])
def test_hostile_files_are_refused_and_never_run(
    tmp_path: Path, kind: str, suffix: str, trust: bool
) -> None:
    file, marker = tmp_path / f"model.{suffix}", tmp_path / "marker"
    hostile(kind, file, marker)
    for name in ("", "timm:resnet18?weights=", "torch.nn:Identity?weights="):
        assert_refused(f"{name}{file}", "--target", str(file), trust=trust)
    assert not marker.exists()
    if kind in ("torch", "zip"):
        spec = f"timm:resnet18?weights={file}"
        assert_refused(spec, "pickle", "safetensors.torch.save_file", trust=trust)


def test_hostile_file_in_a_folder_is_refused_and_never_run(tmp_path: Path) -> None:
    hostile("torch", tmp_path / "target.safetensors", tmp_path / "marker")
    assert_refused(tmp_path, "target.safetensors", trust=True)
    assert not (tmp_path / "marker").exists()


# Programs


def program(kind: str, file: Path) -> Small:
    module = Small().eval()
    if kind in ("script", "trace"):
        jit = torch.jit.script(module) if kind == "script" else torch.jit.trace(module, images(2))
        torch.jit.save(jit, str(file))
    else:
        dynamic = {"x": {0: torch.export.Dim("n")}} if kind == "dynamic" else None
        example = images(2 if kind == "dynamic" else int(kind[-1]))
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), file)
    return module


@pytest.mark.parametrize("kind", ["script", "trace", "dynamic", "static 1", "static 3"])
def test_programs_need_trust_and_then_give_the_models_logits(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("model.pt" if kind in ("script", "trace") else "model.pt2")
    module = program(kind, file)
    assert_refused(file, str(file), "runs code", "--trust-target")
    target = load(file, trust=True)
    assert target.image_shape == (1, 8, 8)
    for n in (1, 2, 5):
        x = images(n).requires_grad_(True)
        ours, theirs = target(x), module(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_an_exported_program_has_one_size(tmp_path: Path) -> None:
    program("static 3", tmp_path / "m.pt2")
    assert_refused(tmp_path / "m.pt2", "8x8", "--size 8", trust=True, size=16, given_size=16)
    # Not chosen: images of another size are resized to the program's.
    target = load(tmp_path / "m.pt2", trust=True, size=16)
    assert target.image_shape == (1, 8, 8) and target(images(2, size=16)).shape == (2, 3)


def test_programs_take_the_channels_they_were_made_for(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Small(channels=3).eval()), str(tmp_path / "m.pt"))
    target = load(tmp_path / "m.pt", trust=True, channels=1)
    assert target.image_shape == (3, 8, 8)
    torch.testing.assert_close(target(images(2)), Small(3)(images(2).expand(-1, 3, -1, -1)))


# timm


def timm_model(name: str, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=3, in_chans=channels, pretrained=False).eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_gives_the_networks_own_logits(tmp_path: Path, channels: int) -> None:
    model = timm_model("resnet10t", channels)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    spec = f"timm:resnet10t?weights={tmp_path / 'w.safetensors'}"
    target = load(spec, size=32, channels=channels)
    x = images(2, channels, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if channels == 1:
        mean, std = mean.mean()[None], std.mean()[None]
    normalised = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    torch.testing.assert_close(target(x), model(normalised).detach(), rtol=1e-4, atol=1e-4)
    own = load(spec, size=32, channels=channels, mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(own(x), model((x - 0.5) / 0.25).detach(), rtol=1e-4, atol=1e-4)


def test_refuses_unknown_timm_names_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    state = timm_model("resnet10t").state_dict()
    spec, two = f"timm:resnet10t?weights={file}", ("a", "b")
    save_file(state, file)
    for wrong, *parts in (
        (f"timm:resnet81?weights={file}", "resnet81", "did you mean resnet"),
        ("timm:resnet10t", "?weights=FILE"),
        (f"timm:resnet10t?weight={file}", "did you mean weights?"),
        (f"timm:resnet10t?weights={tmp_path / 'no.safetensors'}", "no such weights file"),
        (f"timm:resnet14t?weights={file}", str(file), "another network"),
    ):
        assert_refused(wrong, *parts, size=32)
    assert_refused(spec, "3 outputs", "--classes", classes=two, size=32)
    narrow = {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    for tensors, *parts in (
        (state | narrow, *narrow, "[64, 64, 1, 1]"),
        (state | {"more": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "more"'),
        ({"other": torch.zeros(1)}, "fc.weight"),
    ):
        save_file(tensors, file)
        assert_refused(spec, *parts, size=32)


@pytest.mark.parametrize("damage", ["cut in the header", "cut in the tensors", "noise", "empty"])
def test_refuses_damaged_safetensors(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"fc.weight": torch.zeros(3, 512)}, file)
    whole = file.read_bytes()
    noise = b"\x10\0\0\0\0\0\0\0" + b"\xff" * 100
    cuts = {"cut in the header": whole[:20], "cut in the tensors": whole[:-100], "empty": b""}
    file.write_bytes({**cuts, "noise": noise}[damage])
    for spec in (f"timm:resnet18?weights={file}", str(file), f"torch.nn:Identity?weights={file}"):
        assert_refused(spec, str(file), "safetensors")


def test_reads_a_header_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    """A file begins with its header's length; 128 is also the first byte of a pickle."""
    file = tmp_path / "w.safetensors"
    tensor = {"head.weight": torch.ones(3, 64)}
    lengths = set()
    for n in range(0, 256, 8):
        save_file(tensor, file, metadata={"note": "x" * n})
        lengths.add(file.read_bytes()[0])
        assert_refused(f"torch.nn:Identity?weights={file}", "(4, K)")
    assert 0x80 in lengths


# Factories


class Answering(Small):
    """Returns ``answer(logits, images)``."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x), x)


def filled(weights: str) -> nn.Module:
    module = Small()
    module.load_state_dict(load_file(weights))
    return module


def broken() -> nn.Module:
    raise RuntimeError("no disk")


@pytest.fixture
def spec_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    """Return the spec of a function that returns the given object."""

    def spec(made: object) -> str:
        monkeypatch.setitem(globals(), "make", lambda: made)
        return f"{__name__}:make"

    return spec


def test_factory_with_and_without_weights(spec_of: Any, tmp_path: Path) -> None:
    assert load(spec_of(Small()))(images(4)).shape == (4, 3)
    other = Small()
    other.head.weight.data += 1.0
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    target = load(f"{__name__}:filled?weights={tmp_path / 'w.safetensors'}")
    torch.testing.assert_close(target(images(4)), other(images(4)).detach(), rtol=1e-4, atol=1e-4)
    assert not target.module.training
    assert not any(p.requires_grad for p in target.module.parameters())


def test_factory_of_colour_images_gets_colour(spec_of: Any) -> None:
    assert load(spec_of(Small(channels=3)), channels=1).image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (Answering(lambda logits, x: x), ("(4, K)", "(4, 1, 8, 8)")),
        (Answering(lambda logits, x: logits.argmax(1)), ("(4, K)", "(4,)")),
        (Answering(lambda logits, x: [logits[:, 0]]), ("(4, K)", "list", "(4,)")),
        (Answering(lambda logits, x: {"features": x}), ("(4, K)", "dict", "(4, 1, 8, 8)")),
        (Answering(lambda logits, x: None), ("(4, K)", "NoneType")),
        (Answering(lambda logits, x: 0.0 * logits), ("ignores its input",)),
        (Answering(lambda logits, x: logits + x.mean()), ("depends on the rest of the batch",)),
        (Answering(lambda logits, x: logits.squeeze()[:, None].squeeze()), ("one image alone",)),
        (Small(outputs=4), ("4 outputs", "3 classes", "often a background class")),
        (Answering(lambda logits, x: logits * float("nan")), ("NaN", "--mean")),
        (Answering(lambda logits, x: logits / 0), ("infinity",)),
        (Answering(lambda logits, x: logits.detach()), ("no gradient",)),
        (Answering(lambda logits, x: x @ logits), ("failed on images of 8x8", "--size")),
        (Small(outputs=5), ("5 outputs", "3 classes", "--classes")),
        (7, ("torch.nn.Module", "returned int")),
    ],
)
def test_refuses_models_with_wrong_outputs(
    spec_of: Any, made: object, parts: tuple[str, ...]
) -> None:
    assert_refused(spec_of(made), *parts)


def test_refuses_what_cannot_be_called() -> None:
    for spec, *parts in (
        ("no_such_package_here:make", "no_such_package_here", "failed"),
        (f"{__name__}:brokn", "did you mean broken?"),
        (f"{__name__}:broken", "calling it failed", "RuntimeError: no disk"),
        (f"{__name__}:Payload", "calling it failed", "TypeError"),
        ("nowhere.pt", "no such file", "timm:NAME?weights="),
        ("./nowhere:make", "no such file"),
    ):
        assert_refused(spec, *parts)


# Class order


def test_class_order(spec_of: Any, tmp_path: Path) -> None:
    spec, order = spec_of(Small(outputs=4)), tmp_path / "order.txt"
    assert_refused(spec, "cannot be read", class_order=order)
    order.write_text("d\nc\n\n b \na\n")
    with pytest.warns(UserWarning, match="one class more than --private: d"):
        target = load(spec, class_order=order)
    assert target.classes == ("d", "c", "b", "a") and target.num_classes == 4
    for content, *parts in (
        (b"d\nc\nb\ne\n", "class a of --private", str(order)),
        (b"a\nb\nc\n", "4 outputs", "3 classes"),
        (b"a\nb\nc\na\n", "names a twice"),
        (b"\n", "is empty"),
        (b"\xff\xfe\xff", str(order), "cannot be read"),
    ):
        order.write_bytes(content)
        assert_refused(spec, *parts, class_order=order)


def test_normalisation_must_fit_the_channels(tmp_path: Path) -> None:
    save_own(tmp_path / "t.safetensors")
    assert_refused(tmp_path / "t.safetensors", "1 channel(s)", "--mean has 3", mean=(0.1, 0.2, 0.3))


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
    assert target.restricted(Access.LABEL).restricted(Access.WHITE_BOX).access is Access.LABEL


# What inversight wrote


def save_own(file: Path, channels: int = 1) -> Any:
    saved = build_classifier(
        "resnet", classes=CLASSES, image_shape=(channels, 8, 8), width=4, mean=(0.3,) * channels,
        std=(0.2,) * channels, rng=generator(1),
    )  # fmt: skip
    save_classifier(saved, file)
    return saved


@pytest.mark.parametrize("channels", [1, 3])
def test_loads_a_trained_classifier_from_its_file_and_folder(tmp_path: Path, channels: int) -> None:
    saved = save_own(tmp_path / "target.safetensors", channels)
    x = images(3, channels, 8)
    expected = saved.module.eval()((x - 0.3) / 0.2).detach()
    for spec in (tmp_path, tmp_path / "target.safetensors"):
        with pytest.warns(UserWarning, match="one class more than --private: b"):
            target = load(spec, classes=("c", "a"), size=20, channels=3)
        assert target.classes == CLASSES and target.image_shape == (channels, 8, 8)
        torch.testing.assert_close(target(x), expected)
    assert_refused(tmp_path, "class z of --private", classes=("a", "z"))
    assert_refused(f"{tmp_path}?weights={tmp_path / 'target.safetensors'}", "takes no ?weights=")


def test_refuses_own_files_that_do_not_fit(tmp_path: Path) -> None:
    assert_refused(tmp_path, "target.safetensors", "inversight train")
    file = tmp_path / "target.safetensors"
    save_file({"fc.weight": torch.zeros(3, 3)}, file)
    assert_refused(file, "not written by `inversight train`", f"timm:resnet18?weights={file}")
    for facts in ("{}", "not json", '{"architecture": "mlp"}', "[]"):
        save_file({"x": torch.zeros(1)}, file, metadata={"inversight.classifier": facts})
        assert_refused(file, str(file), "do not fit")


def test_absolute_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"")
    assert absolute_spec("model.pt2") == f"{tmp_path}/model.pt2"
    assert absolute_spec("timm:resnet18?weights=w") == f"timm:resnet18?weights={tmp_path}/w"
    assert absolute_spec("pkg.mod:net") == "pkg.mod:net"
    assert absolute_spec("pkg.mod:net?weights=/a/b") == "pkg.mod:net?weights=/a/b"
