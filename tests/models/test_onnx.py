"""ONNX files give what onnxruntime and the exported network give, and nothing outside them is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from inversight.attacks.queries import QueryMeter, metered
from inversight.core.errors import TargetError
from inversight.core.seeding import generator
from inversight.models.loaders.onnx import OnnxNetwork, layout_of
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Access, Target
from tests.models.onnx_files import Network, answers, export, external
from tests.refusals import refused

IMAGES = torch.rand(5, 1, 8, 8, generator=generator(3))


def load(file: object, *, channels: int = 1, size: int = 8, **model: Any) -> Target:
    given = ModelSpec(str(file), **model)
    return load_target(given, classes=("a", "b", "c"), size=size, channels=channels)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return export(Network(), tmp_path / "model.onnx")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_equals_onnxruntime_and_the_exported_network(file: Path) -> None:
    target = load(file, mean=(0.4,), std=(0.3,))
    given = (IMAGES - 0.4) / 0.3
    assert target.access is Access.SCORES
    close(target(IMAGES), answers(file, given).log_softmax(1))
    close(target(IMAGES), Network()(given).log_softmax(1).detach())
    assert not target(IMAGES.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batches_are_looped_and_images_counted(tmp_path: Path, batch: int) -> None:
    file = export(Network(), tmp_path / "model.onnx", batch=batch)
    target, meter = load(file), QueryMeter()
    module = target.module
    assert isinstance(module, OnnxNetwork) and module.batch == batch
    run, calls = module._session.run, []
    module._session = type("Counted", (), {"run": lambda _, *a: calls.append(a) or run(*a)})()
    found = metered(target, Access.SCORES, meter)(IMAGES)
    close(found, Network()(IMAGES).log_softmax(1).detach())
    assert len(calls) == -(-5 // batch) and meter.used == 5


@pytest.mark.parametrize("free", [(), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_layout_is_read_from_the_graph(
    tmp_path: Path, free: tuple[int, ...], channels: int
) -> None:
    images = torch.rand(4, channels, 8, 8, generator=generator(4))
    first, last = Network(channels=channels), Network(channels=channels, last=True)
    shapes = {"first": (channels, 8, 8), "last": (8, 8, channels)}
    for name, module in (("first", first), ("last", last)):
        file = export(module, tmp_path / f"{name}.onnx", shape=shapes[name], free=free)
        found = load(file, channels=channels)
        close(found(images), first(images).log_softmax(1).detach())
        assert found.image_shape == (channels, 8, 8)


def test_layout_without_a_telling_dimension_or_node() -> None:
    graph = onnx.helper.make_graph([], "g", [], [])
    assert layout_of(graph, "x", [None, "c", "h", "w"]) == "NCHW"


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1.0), (torch.uint8, 255.0)])
def test_input_of_other_types(tmp_path: Path, dtype: torch.dtype, scale: float) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.float() / scale)

    file, inner = tmp_path / "model.onnx", Cast()
    given = IMAGES if dtype is torch.float16 else (IMAGES * 255.0).round()
    export(inner, file)
    model = onnx.load(str(file))
    wanted = {torch.float16: onnx.TensorProto.FLOAT16, torch.uint8: onnx.TensorProto.UINT8}[dtype]
    cast = onnx.helper.make_node("Cast", ["raw"], ["pixels"], to=onnx.TensorProto.FLOAT)
    model.graph.input[0].name = "raw"
    model.graph.input[0].type.tensor_type.elem_type = wanted
    model.graph.node.insert(0, cast)
    onnx.save(model, str(file))
    expected = inner(given.to(dtype).float()).log_softmax(1).detach()
    torch.testing.assert_close(load(file)(IMAGES), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers(file, given.to(dtype)).log_softmax(1), expected)
    if dtype is torch.uint8:
        with refused("takes bytes", "leave --mean", error=TargetError):
            load(file, mean=(0.5,))


def test_output_called_logits_is_taken(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((1, 2)), self.network(x)

    file = export(Two(), tmp_path / "model.onnx", batch=1)
    model = onnx.load(str(file))
    (old,) = [one.name for one in model.graph.output if one.name != "scores"]
    model.graph.node.append(onnx.helper.make_node("Identity", [old], ["logits"]))
    model.graph.output[1].name = "logits"
    onnx.save(model, str(file))
    close(load(file)(IMAGES), Network()(IMAGES).log_softmax(1).detach())


@pytest.mark.parametrize("batch", [None, 1])
def test_probabilities_are_found_by_trying(tmp_path: Path, batch: int | None) -> None:
    file = export(Network(softmax=True), tmp_path / "model.onnx", batch=batch)
    said: list[str] = []
    target = load_target(
        ModelSpec(str(file)), classes=("a", "b", "c"), size=8, channels=1, warn=said.append
    )
    close(target(IMAGES), answers(file, IMAGES).log())
    close(target(IMAGES), Network()(IMAGES).log_softmax(1).detach())
    assert "probabilities" in said[0]


def test_weights_beside_the_file_are_read(file: Path) -> None:
    before = answers(file, IMAGES)
    close(load(external(file))(IMAGES), before.log_softmax(1))


def in_a_subgraph(file: Path, location: str) -> Path:
    """Hide an external tensor in a branch of an If node."""
    model = onnx.load(str(file))
    tensor = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Constant", [], ["out"], value=tensor)
    branch = onnx.helper.make_graph([node], "branch", [], [out])
    flag = onnx.helper.make_tensor("flag", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(flag)
    model.graph.node.append(
        onnx.helper.make_node("If", ["flag"], ["more"], then_branch=branch, else_branch=branch)
    )
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("hide", [external, in_a_subgraph])
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("gone.bin", "weights are in gone.bin, which is not there; copy that file to"),
        ("../secret.bin", "weights in ../secret.bin, outside its folder"),
        ("/etc/hostname", "weights in /etc/hostname, outside its folder"),
        ("link.bin", "weights in link.bin, outside its folder"),
    ],
)
def test_weights_missing_or_elsewhere_are_refused(
    tmp_path: Path, hide: Any, location: str, message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    file = hide(export(Network(), folder / "model.onnx"), location)
    with refused("--target", message, error=TargetError):
        load(file)


def test_links_to_a_store_are_followed(tmp_path: Path) -> None:
    """As Hugging Face's cache has them."""
    for name in ("blobs", "snapshot"):
        (tmp_path / name).mkdir()
    file = external(export(Network(), tmp_path / "blobs" / "model.onnx"))
    (tmp_path / "snapshot" / "weights.bin").symlink_to(tmp_path / "blobs" / "weights.bin")
    link = tmp_path / "snapshot" / "model.onnx"
    link.symlink_to(file)
    try:
        found = load(link)
    except TargetError as error:
        assert "onnxruntime" in str(error)  # newer versions do not follow links
    else:
        close(found(IMAGES), Network()(IMAGES).log_softmax(1).detach())


def too_new(file: Path) -> None:
    model = onnx.load(str(file))
    model.opset_import[0].version = 999
    onnx.save(model, str(file))


def two_inputs(file: Path) -> None:
    model = onnx.load(str(file))
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1, 3])
    )
    onnx.save(model, str(file))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(b"\x80\x04K\x01."), "is not an ONNX file"),
        (lambda file: file.write_bytes(b""), "onnxruntime"),
        (lambda file: file.write_bytes(file.read_bytes()[:200]), "is not an ONNX file"),
        (too_new, "cannot load it, opset {'ai.onnx': 999}"),
        (two_inputs, "expected one input of images (N, C, H, W), found pixels"),
    ],
)
def test_other_files_are_refused_in_one_line(file: Path, spoil: Any, message: str) -> None:
    spoil(file)
    with refused("--target", message, error=TargetError):
        load(file)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_missing_package_is_named(file: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with refused("pip install 'inversight[onnx]'", error=TargetError):
        load(file)


def test_size_and_classes_are_checked(file: Path) -> None:
    with refused("takes 8x8 images; give --size 8", error=TargetError):
        load_target(ModelSpec(str(file), size=16), classes=(), size=8, channels=1)
    with refused("has 3 outputs, --private has 2 classes", error=TargetError):
        load_target(ModelSpec(str(file)), classes=("a", "b"), size=8, channels=1)


def test_access_can_be_restricted_but_not_widened(file: Path) -> None:
    scores = load(file)(IMAGES)
    labels = load(file, access=Access.LABEL)(IMAGES)
    assert torch.equal(labels.argmax(1), scores.argmax(1)) and set(labels.unique().tolist()) == {
        0,
        1,
    }
    with refused("gives scores access only; leave --access white-box out", error=TargetError):
        load(file, access=Access.WHITE_BOX)
