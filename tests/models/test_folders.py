"""Folders that transformers and timm wrote: the target gives what their own libraries give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor

from inversight.core.errors import TargetError
from inversight.core.imaging import to_float
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from tests.refusals import refused

NAMES = ("cat", "dog", "eel", "fox")
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def load(spec: object, *, classes: tuple[str, ...] = NAMES, order: Path | None = None) -> Target:
    return load_target(ModelSpec(str(spec), classes=order), classes=classes, size=32, channels=3)


def pictures(folder: Path, side: int, n: int = 3) -> tuple[list[Image.Image], Tensor]:
    """Write PNG files of noise; return them as Pillow and as images in [0, 1]."""
    rng = np.random.default_rng(side)
    arrays = rng.integers(0, 256, (n, side, side, 3), np.uint8)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{side}-{i}.png")
    files = [Image.open(folder / f"{side}-{i}.png").convert("RGB") for i in range(n)]
    return files, to_float(torch.from_numpy(arrays).permute(0, 3, 1, 2))


# transformers


def models() -> dict[str, tuple[Any, Any]]:
    """Return small networks with random weights, and processors, by name."""
    t = transformers
    mean_std = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    exact = {"size": {"height": 32, "width": 32}, **mean_std}
    return {
        "vit": (
            t.ViTForImageClassification(t.ViTConfig(**SMALL, image_size=32, patch_size=8, **LABELS)),
            t.ViTImageProcessor(**exact),
        ),
        "resnet": (
            t.ResNetForImageClassification(
                t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS)
            ),
            t.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, **mean_std),
        ),
        "convnext": (
            t.ConvNextForImageClassification(
                t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **LABELS)
            ),
            t.ConvNextImageProcessor(size={"shortest_edge": 384}, **mean_std),
        ),
        "swin": (
            t.SwinForImageClassification(
                t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
                             window_size=4, **LABELS)
            ),
            t.ViTImageProcessor(**exact, resample=3),
        ),
        "crop": (
            t.ViTForImageClassification(t.ViTConfig(**SMALL, image_size=32, patch_size=8, **LABELS)),
            t.CLIPImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}),
        ),
        "twice": (
            t.ResNetForImageClassification(
                t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS)
            ),
            t.EfficientNetImageProcessor(rescale_offset=True, rescale_factor=1 / 127.5, include_top=True,
                                         **exact),
        ),
        "bgr": (
            t.ResNetForImageClassification(
                t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS)
            ),
            t.MobileViTImageProcessor(size={"shortest_edge": 36},
                                      crop_size={"height": 32, "width": 32}),
        ),
        "rectangle": (
            t.ViTForImageClassification(
                t.ViTConfig(**SMALL, image_size=(32, 24), patch_size=8, **LABELS)
            ),
            t.ViTImageProcessor(size={"height": 32, "width": 24}, **mean_std),
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, (model, processor) in models().items():
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
    return {folder.name: folder for folder in root.iterdir()}


def own_logits(folder: Path, files: list[Image.Image]) -> Tensor:
    """Return what transformers gives for image files."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model(**processor(images=files, return_tensors="pt")).logits


ALIKE = {"vit": 32, "resnet": 36, "convnext": 384, "swin": 32, "crop": 37, "twice": 32, "bgr": 36}
"""The size of an image that the processor does not resize."""


@pytest.mark.parametrize("name", ALIKE)
def test_logits_are_those_of_transformers(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    target = load(folders[name])
    assert target.classes == NAMES
    files, images = pictures(tmp_path, ALIKE[name])
    expected = own_logits(folders[name], files)
    torch.testing.assert_close(target(images), expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("side", [24, 60])
@pytest.mark.parametrize("name", [*ALIKE, "rectangle"])
def test_resized_images_differ_by_rounding_to_8_bits_alone(
    folders: dict[str, Path], name: str, side: int, tmp_path: Path
) -> None:
    """The library rounds after resizing, an attack's gradient cannot: half of 1/255 in most pixels."""
    target = load(folders[name])
    files, images = pictures(tmp_path, side)
    processor = transformers.AutoImageProcessor.from_pretrained(folders[name])
    expected = processor(images=files, return_tensors="pt")["pixel_values"]
    seen: list[Tensor] = []
    handle = target.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    target(images)
    handle.remove()
    ours = seen[0].flip(1) if name == "bgr" else seen[0]
    std = torch.tensor(target.std).view(-1, 1, 1)
    off = (ours - expected).abs() * (std.flip(0) if name == "bgr" else std) * 255.0
    assert ours.shape == expected.shape and off.max() <= 1.5 and off.mean() <= 0.35
    assert off.max() > 0.01  # it was resized


def test_gradients_pass_through_resizing_and_cropping(folders: dict[str, Path]) -> None:
    x = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(load(folders["crop"])(x)[:, 1].sum(), x)
    inside = gradient[..., 6:-6, 6:-6].abs().sum()
    assert inside > 0 and gradient[..., :1, :].abs().sum() == 0  # what is cut off does not matter


def test_without_a_processor_the_options_say_what_it_would(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy_of(folders["vit"], tmp_path, without="preprocessor_config.json")
    assert_refused(tmp_path, "no preprocessor_config.json", "--mean")
    given = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    model = ModelSpec(str(tmp_path), size=32, **given)
    target = load_target(model, classes=NAMES, size=32, channels=3)
    files, images = pictures(tmp_path, 32)
    torch.testing.assert_close(
        target(images), own_logits(folders["vit"], files), atol=1e-5, rtol=0.0
    )


def copy_of(folder: Path, new: Path, *, without: str = "", **changes: Any) -> Path:
    """Copy a folder, changing values of its config.json."""
    for file in folder.iterdir():
        if file.name != without:
            (new / file.name).write_bytes(file.read_bytes())
    edit(new / "config.json", **changes)
    return new


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def assert_refused(spec: object, *parts: str, **more: Any) -> None:
    with refused(str(spec), *parts, error=TargetError):
        load(spec, **more)


def test_other_models_and_code_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    text, new = tmp_path / "text", tmp_path / "new"
    config = transformers.BertConfig(**SMALL, vocab_size=8, max_position_embeddings=8)
    transformers.BertForSequenceClassification(config).save_pretrained(text)
    assert_refused(text, "no image classifier", "BertForSequenceClassification")
    new.mkdir()
    for changes, *parts in (
        ({"auto_map": {"AutoConfig": "code.Config"}}, "code of its own", "package.module:factory"),
        ({"architectures": ["ViTModel"]}, "ViTModel", "expected ViTForImageClassification"),
        ({"model_type": "brand-new"}, "no image classifier"),
        ({"model_type": ["vit"]}, "no image classifier"),
        ({"architectures": 7}, "no image classifier"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised"),
        ({"hidden_size": 20}, "cannot load"),
        (
            {"id2label": {"0": "a", "1": "a", "2": "b", "3": "c"}},
            "outputs 0 and 1 both a",
            "--classes",
        ),
    ):
        assert_refused(copy_of(folders["vit"], new, **changes), *parts)
    (new / "code.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    copy_of(folders["vit"], new)
    edit(new / "preprocessor_config.json", auto_map={"AutoImageProcessor": "code.Processor"})
    assert_refused(new, "code of its own")
    assert not (tmp_path / "marker").exists()
    (new / "config.json").write_text("[1]")
    assert_refused(new, "config.json holds no mapping")
    copy_of(folders["vit"], new)
    (new / "model.safetensors").unlink()
    (new / "pytorch_model.bin").write_bytes(b"")
    assert_refused(new, "no model.safetensors but pytorch_model.bin", "save_pretrained")


def test_a_processor_that_cannot_be_followed_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy_of(folders["vit"], tmp_path)
    file = tmp_path / "preprocessor_config.json"
    whole = file.read_text()
    for changes, part in (
        ({"image_processor_type": "NewImageProcessor"}, "NewImageProcessor"),
        ({"resample": 0}, "more than resize, crop"),
        ({"do_pad": True, "pad_size": {"height": 40, "width": 40}}, "more than resize, crop"),
    ):
        file.write_text(whole)
        edit(file, **changes)
        assert_refused(tmp_path, part)


def test_weights_without_a_head_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy_of(folders["vit"], tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "classifier" not in k}, file, {"format": "pt"})
    assert_refused(tmp_path, "lack 2 tensor(s)", "classifier.")


def test_weights_in_several_files_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(folders["vit"])
    copy_of(folders["vit"], tmp_path, without="model.safetensors")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    _, images = pictures(tmp_path, 32)
    torch.testing.assert_close(load(tmp_path)(images), load(folders["vit"])(images))


@pytest.mark.parametrize(
    "name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"]
)
def test_kernels_that_a_configuration_names_are_not_fetched(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    copy_of(folders["vit"], tmp_path, **{name: "someone/kernel"})
    _, images = pictures(tmp_path, 32)
    torch.testing.assert_close(load(tmp_path)(images), load(folders["vit"])(images))


def test_weights_without_metadata_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    copy_of(folders["vit"], tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    _, images = pictures(tmp_path, 32)
    torch.testing.assert_close(load(tmp_path)(images), load(folders["vit"])(images))


def test_placeholders_are_no_class_names(folders: dict[str, Path], tmp_path: Path) -> None:
    names = {str(i): f"LABEL_{i}" for i in range(4)}
    copy_of(folders["vit"], tmp_path, id2label=names, label2id={})
    private = ("w", "x", "y", "z")
    target = load(tmp_path, classes=private)
    assert target.classes == private and target.label_names == ()


def test_a_class_more_than_private_images_is_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As of networks from TensorFlow: 1,001 outputs for 1,000 classes, the first of them background."""
    more = transformers.ViTConfig(
        **SMALL, image_size=32, patch_size=8, id2label=dict(enumerate(("background", *NAMES)))
    )
    copy_of(folders["vit"], tmp_path)
    transformers.ViTForImageClassification(more).save_pretrained(tmp_path)
    said: list[str] = []
    target = load_target(
        ModelSpec(str(tmp_path)), classes=NAMES, size=32, channels=3, warn=said.append
    )
    assert target.classes == ("background", *NAMES)
    assert len(said) == 1 and "one class more than --private: background" in said[0]
    order = tmp_path / "order.txt"
    order.write_text("\n".join(NAMES))
    assert_refused(
        tmp_path, "5 outputs", "4 classes (without background)", classes=NAMES, order=order
    )
    order.write_text("\n".join((*NAMES, "gnu")))
    with refused("class eel of --private", "such as", error=TargetError):
        load_target(
            ModelSpec(str(tmp_path), classes=other_names(order)), classes=NAMES, size=32, channels=3
        )
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    order.write_text("\n".join((*NAMES, "gnu", "hen")))
    assert_refused(tmp_path, "5 outputs", "6 classes (with gnu, hen, of which", order=order)


def other_names(file: Path) -> Path:
    """Rename a class in a file of class names."""
    file.write_text(file.read_text().replace("eel", "emu"))
    return file


# timm


def timm_folder(root: Path, name: str = "test_resnet", **changes: Any) -> Any:
    """Write a folder of timm with preprocessing of its own; return the network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = timm.create_model(name, num_classes=4, pretrained=False).eval()
    model.pretrained_cfg = {
        **model.pretrained_cfg, "input_size": (3, 32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
        "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center", **changes,
    }  # fmt: skip
    save_for_hf(model, str(root), {"label_names": list(NAMES)}, safe_serialization=True)
    return model


def timm_input(root: Path, files: list[Image.Image]) -> Tensor:
    """Return what timm makes of image files."""
    facts = json.loads((root / "config.json").read_text())["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=facts))
    return torch.stack([transform(file) for file in files])


@pytest.mark.parametrize(("crop", "share", "side"), [("center", 0.9, 35), ("squash", 1.0, 32)])
def test_logits_are_those_of_timm(tmp_path: Path, crop: str, share: float, side: int) -> None:
    model = timm_folder(tmp_path, crop_mode=crop, crop_pct=share)
    target = load(tmp_path)
    assert target.classes == NAMES and target.image_shape == (3, 32, 32)
    files, images = pictures(tmp_path, side)
    with torch.no_grad():
        expected = model(timm_input(tmp_path, files))
    torch.testing.assert_close(target(images), expected, atol=1e-5, rtol=0.0)
    files, images = pictures(tmp_path, 60)
    seen: list[Tensor] = []
    target.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    target(images)
    off = (seen[0] - timm_input(tmp_path, files)).abs() * torch.tensor(target.std).view(-1, 1, 1)
    assert off.max() * 255.0 <= 1.5  # Pillow rounds twice: after width and after height


def test_timm_folders_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    timm_folder(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    facts = whole["pretrained_cfg"]
    for changes, *parts in (
        (
            {"architecture": "test_resnit"},
            "timm has no model test_resnit",
            "did you mean test_resnet",
        ),
        ({"pretrained_cfg": {**facts, "interpolation": "lanczos"}}, "interpolation lanczos"),
        ({"pretrained_cfg": {**facts, "crop_mode": "border"}}, "crop_mode border"),
        ({"model_args": {"num_classes": 5}}, "does not fit the network"),
        ({"label_names": ["a", "a", "b", "c"]}, "outputs 0 and 1 both a"),
        ({"model_args": {"no_such": 1}}, "config.json does not fit timm"),
        ({"model_args": [1]}, "config.json does not fit timm"),
        ({"pretrained_cfg": 7}, "config.json does not fit timm"),
        ({"pretrained_cfg": {**facts, "input_size": [3]}}, "config.json does not fit timm"),
        ({"label_names": {"0": "a", "2": "b"}}, "not numbered from 0"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**whole, **changes}))
        assert_refused(tmp_path, *parts)


def test_transformers_wrapper_of_timm_is_read_as_timms_folder(tmp_path: Path) -> None:
    timm_folder(tmp_path / "timm")
    edit(tmp_path / "timm" / "config.json", model_args={})  # transformers gives num_classes itself
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "timm")
    wrapped.save_pretrained(tmp_path / "wrapped")
    files, images = pictures(tmp_path, 35)
    with torch.no_grad():
        expected = wrapped.eval()(timm_input(tmp_path / "timm", files)).logits
    torch.testing.assert_close(load(tmp_path / "wrapped")(images), expected, atol=1e-5, rtol=0.0)
