"""The model under audit: loading it safely, preprocessing, bounds, access."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.config import import_object, nearest
from inversight.core.errors import ConfigError, TargetError
from inversight.core.imaging import fit
from inversight.data import ImageSet
from inversight.models.networks import SavedClassifier, load_classifier

_CONVERT = (
    "convert it once where you trust it: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
SERVICE = "endpoint:"
"""How the spec of a service begins: see inversight.attacks.endpoint."""
_LEAST_SCORE = 1e-12
"""What a probability of 0 is taken for, so that its logarithm is a number."""


class Access(StrEnum):
    """What an attacker can get of a target."""

    WHITE_BOX = "white-box"
    SCORES = "scores"
    LABEL = "label"


@dataclass(frozen=True)
class Target:
    """A classifier of images, called with images (N, 1|3, h, w) in [0, 1] of any size.

    ``image_shape`` (C, S, S) is the model's input, which images are brought to; ``classes`` are its
    outputs in order. White-box access gives logits (N, K) with gradients; scores access log
    probabilities without; label access a one-hot of the predicted class. ``outputs`` is what the
    owner does with probabilities (N, K) before giving them out, so it concerns scores access alone.
    ``before`` is told how many images are about to be sent, and may refuse by raising.
    """

    module: nn.Module
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spec: str
    access: Access = Access.WHITE_BOX
    bounds: tuple[float, float] = (0.0, 1.0)
    outputs: Callable[[Tensor], Tensor] | None = None
    before: Callable[[int], None] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __call__(self, images: Tensor) -> Tensor:
        if self.before is not None:
            self.before(len(images))
        channels, height, width = self.image_shape
        x = fit(images, size=(height, width), channels=channels)
        mean = torch.tensor(self.mean, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
        if self.access is Access.WHITE_BOX:
            return _like(self.module((x - mean) / std), x)
        with torch.no_grad():
            logits = _like(self.module((x - mean) / std), x)
        if self.access is Access.SCORES:
            if self.outputs is None:
                return F.log_softmax(logits, dim=1)
            return self.outputs(logits.softmax(1)).clamp_min(_LEAST_SCORE).log()
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)

    def restricted(self, access: Access) -> Target:
        """The same target with another access."""
        return replace(self, access=access)

    def to(self, device: torch.device | str) -> Target:
        """The same target with its network on ``device``."""
        return replace(self, module=self.module.to(device))


def _like(logits: Any, x: Tensor) -> Tensor:
    """Logits in the precision of ``x``; what is no tensor is found out when a target is loaded."""
    found: Tensor = logits.to(x.dtype) if isinstance(logits, Tensor) else logits
    return found


def target_of(saved: SavedClassifier, spec: str) -> Target:
    """A classifier that the audit trained, as a target."""
    return Target(
        module=saved.module.eval().requires_grad_(False),
        classes=saved.classes,
        image_shape=saved.image_shape,
        mean=saved.mean,
        std=saved.std,
        spec=spec,
    )


def load_target(
    spec: str,
    *,
    classes: tuple[str, ...],
    class_order: Path | None,
    size: int,
    channels: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    trust: bool,
    size_given: bool = False,
    role: str = "--target",
) -> Target:
    """Load the model that ``spec`` names and try it on two images.

    ``spec``: ``timm:NAME?weights=FILE.safetensors``, ``package.module:factory[?weights=FILE]``, a
    file or folder that ``inversight train`` wrote, or a TorchScript or torch.export file, which
    needs ``trust`` because loading it runs code. Nothing is ever unpickled. ``classes`` are the
    private folder's, ``class_order`` a file with the model's class names in the order of its
    outputs. ``size`` and ``channels`` are the images' own.

    Raises:
        TargetError: one line on what is wrong and what to do.
    """
    if spec.startswith(SERVICE):
        raise TargetError(
            f"{role} {spec}: is a service, which `inversight attack` takes alone; anything else here "
            "needs the model itself, its layers or gradients"
        )
    name, weights = _parse(spec, role)
    order = read_classes(class_order) if class_order else None
    path = Path(name)
    if name.startswith("timm:"):
        loaded = _load_timm(name.removeprefix("timm:"), weights, size, role)
    elif path.exists():
        if weights is not None:
            raise TargetError(f"{role} {spec}: a file takes no ?weights=")
        loaded = _load_path(path, size, size_given, channels, trust, role)
    elif ":" in name and not name.startswith((".", "/")):
        loaded = _load_factory(name, weights, size, role)
    else:
        raise TargetError(
            f"{role} {spec}: no such file; expected timm:NAME?weights=FILE.safetensors, "
            "package.module:factory?weights=FILE.safetensors, or a file"
        )
    target = Target(
        module=loaded.module.eval().requires_grad_(False),
        classes=order or loaded.classes or classes,
        image_shape=(loaded.channels or channels, loaded.size, loaded.size),
        mean=mean or loaded.mean,
        std=std or loaded.std,
        spec=spec,
    )
    named = order is not None or bool(loaded.classes)
    target = _probe(target, loaded.channels is None, named, role)
    missing = [c for c in classes if c not in target.classes]
    if missing:
        where = f"{class_order}" if class_order else "the model"
        raise TargetError(
            f"{role} {spec}: class {missing[0]} of --private is not among the {target.num_classes} "
            f"classes of {where}; name the model's classes in the order of its outputs with "
            "--classes FILE"
        )
    return target


def absolute_spec(spec: str) -> str:
    """The same target, its file and weights named by absolute paths."""
    name, separator, query = spec.partition("?")
    if Path(name).exists():
        name = str(Path(name).absolute())
    files = [(key, str(Path(value).absolute())) for key, value in parse_qsl(query)]
    return name + separator + "&".join(f"{key}={value}" for key, value in files)


@torch.no_grad()
def accuracy_on(target: Target, images: ImageSet, batch_size: int = 64) -> float:
    """Share of ``images`` in [0, 1] that the target puts in their class."""
    device = next((p.device for p in target.module.parameters()), torch.device("cpu"))
    hits = 0
    for index in torch.arange(len(images)).split(batch_size):
        batch = images.select(index)
        predicted = target(batch.floats().to(device)).argmax(1).cpu()
        hits += int((predicted == batch.labels).sum())
    return hits / len(images)


@dataclass(frozen=True)
class _Loaded:
    """A model as its file gave it; ``channels`` None: to be found out by trying."""

    module: nn.Module
    size: int
    channels: int | None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()


def _parse(spec: str, role: str) -> tuple[str, Path | None]:
    name, _, query = spec.partition("?")
    weights = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key != "weights":
            raise TargetError(f"{role} {spec}: unknown setting {key}{nearest(key, ['weights'])}")
        weights = Path(value)
    if query and weights is None:
        raise TargetError(f"{role} {spec}: expected ?weights=FILE.safetensors after the name")
    if weights is not None:
        if not weights.is_file():
            raise TargetError(f"{role} {weights}: no such weights file")
        _check_safetensors(weights, role)
    return name, weights


def read_classes(path: Path) -> tuple[str, ...]:
    """The model's class names in the order of its outputs, one a line of ``--classes FILE``.

    Raises:
        TargetError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"--classes {path}: cannot be read ({error})") from None
    names = tuple(line for line in lines if line)
    if not names:
        raise TargetError(f"--classes {path}: is empty; expected one class name a line")
    doubled = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if doubled is not None:
        raise TargetError(f"--classes {path}: names {doubled} twice")
    return names


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" or head.startswith((b"(dp", b"c", b"]q", b"}q"))


def _check_safetensors(path: Path, role: str) -> None:
    """Refuse anything but a whole safetensors file, without unpickling anything."""
    try:
        with safe_open(path, "pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        with path.open("rb") as handle:
            head = handle.read(16)
        # Asked only now: the header's length, with which a good file begins, can look like a pickle.
        if zipfile.is_zipfile(path) or _is_pickle(head):
            raise TargetError(
                f"{role} {path}: is a pickle or an archive that may hold one, which can run code "
                f"when loaded; {_CONVERT}"
            ) from None
        reason = str(error).splitlines()[0]
        raise TargetError(f"{role} {path}: not a whole safetensors file ({reason})") from None


def _load_weights(module: nn.Module, path: Path, role: str) -> None:
    with safe_open(path, "pt") as handle:
        found = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in found:
            raise TargetError(
                f"{role} {path}: has no {name}, which the network needs; is it another network's?"
            )
        if found[name].shape != tensor.shape:
            raise TargetError(
                f"{role} {path}: {name} has shape {tuple(found[name].shape)}, the network needs "
                f"{tuple(tensor.shape)}; is it another network's, or of other classes?"
            )
    extra = next((name for name in found if name not in expected), None)
    if extra is not None:
        raise TargetError(f"{role} {path}: holds {extra}, which the network does not have")
    module.load_state_dict(found)


def _load_timm(name: str, weights: Path | None, size: int, role: str) -> _Loaded:
    import timm

    if weights is None:
        raise TargetError(
            f"{role} timm:{name}: needs its trained weights, as timm:{name}?weights=FILE.safetensors"
        )
    if not timm.is_model(name):
        raise TargetError(
            f"{role} timm:{name}: timm has no such model{nearest(name, timm.list_models())}"
        )
    config = timm.get_pretrained_cfg(name).to_dict()
    with safe_open(weights, "pt") as handle:
        shapes = {k: tuple(handle.get_slice(k).get_shape()) for k in handle.keys()}  # noqa: SIM118

    def shape_of(field: str) -> tuple[int, ...]:
        layer = config.get(field)
        layer = layer[0] if isinstance(layer, (tuple, list)) else layer
        shape = shapes.get(f"{layer}.weight")
        if shape is None:
            raise TargetError(
                f"{role} {weights}: has no {layer}.weight, which timm's {name} needs; is it "
                "another network's?"
            )
        return shape

    num_classes, in_chans = shape_of("classifier")[0], shape_of("first_conv")[1]
    options = {"num_classes": num_classes, "in_chans": in_chans, "pretrained": False}
    try:
        module = timm.create_model(name, **options, img_size=size)
    except TypeError:  # convolutional networks take any size and no img_size
        module = timm.create_model(name, **options)
    except Exception as error:
        raise TargetError(f"{role} timm:{name}: could not be built ({error})") from error
    _load_weights(module, weights, role)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if in_chans == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return _Loaded(module, size, in_chans, mean, std)


def _load_factory(name: str, weights: Path | None, size: int, role: str) -> _Loaded:
    try:
        factory = import_object(name, role=role)
    except ConfigError as error:
        raise TargetError(str(error)) from error
    try:
        module = factory() if weights is None else factory(weights=str(weights))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise TargetError(
            f"{role} {name}: calling it failed ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(module, nn.Module):
        raise TargetError(
            f"{role} {name}: expected a function that returns a torch.nn.Module, it returned "
            f"{type(module).__name__}"
        )
    return _Loaded(module, size, None)


def _load_path(
    path: Path, size: int, size_given: bool, channels: int, trust: bool, role: str
) -> _Loaded:
    if path.is_dir() or path.suffix == ".safetensors":
        if path.is_file():
            _check_safetensors(path, role)
        saved = load_classifier(path)
        shape = saved.image_shape
        return _Loaded(saved.module, shape[1], shape[0], saved.mean, saved.std, saved.classes)
    kind = _archive_kind(path)
    if kind is None:
        raise TargetError(
            f"{role} {path}: is a pickle or of an unknown kind and is not loaded, since a pickle "
            f"can run code; {_CONVERT}"
        )
    if not trust:
        raise TargetError(
            f"{role} {path}: is a {kind} file, and loading it runs code that is inside it; if you "
            "trust where it comes from, add --trust-target"
        )
    try:
        if kind == "TorchScript":
            return _Loaded(_Scripted(torch.jit.load(str(path), map_location="cpu")), size, None)
        program = torch.export.load(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TargetError(f"{role} {path}: could not be loaded as {kind} ({reason})") from error
    sizes = _example_shape(program, path, role)
    if size_given and size != sizes[2]:
        raise TargetError(
            f"{role} {path}: was exported for {sizes[2]}x{sizes[2]} images; give --size {sizes[2]}"
        )
    batch = sizes[0] if isinstance(sizes[0], int) else None
    return _Loaded(_Exported(program.module(), batch), int(sizes[2]), int(sizes[1]))


def _archive_kind(path: Path) -> str | None:
    """ "TorchScript" or "torch.export" by the names inside the archive; None for anything else."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    # Both kinds lie below one top folder; an exported program is told by its serialised graph.
    inner = [n.partition("/")[2] or n for n in names]
    if any(n.endswith((".json",)) and ("models/" in n or "exported_program" in n) for n in names):
        return "torch.export"
    if any(n.startswith("code/") for n in inner) and any(n == "constants.pkl" for n in inner):
        return "TorchScript"
    return None


def _example_shape(
    program: torch.export.ExportedProgram, path: Path, role: str
) -> tuple[int | torch.SymInt, ...]:
    users = set(program.graph_signature.user_inputs)
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in users
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise TargetError(
            f"{role} {path}: expected a model of one input (N, C, H, W), found inputs {shapes}"
        )
    return shapes[0]


class _Scripted(nn.Module):
    """A TorchScript module; it refuses some attributes of nn.Module, so it is held, not a child."""

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.scripted = scripted.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scripted(x)
        return out


class _Exported(nn.Module):
    """An exported program, called in chunks where it was exported for one batch size."""

    def __init__(self, module: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.module = module
        self.batch = batch

    def train(self, mode: bool = True) -> _Exported:
        # An exported program's mode is fixed, and setting it raises.
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.batch is None:
            whole: Tensor = self.module(x)
            return whole
        parts = []
        for part in x.split(self.batch):
            missing = self.batch - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(self.module(padded)[: len(part)])
        return torch.cat(parts)


def _probe(target: Target, try_channels: bool, named: bool, role: str) -> Target:
    """Call the target on two images; returns it with the number of channels that worked."""
    c, s, _ = target.image_shape
    tries = [c, 4 - c] if try_channels else [c]
    failure: Exception | None = None
    for channels in tries:
        candidate = replace(target, image_shape=(channels, s, s))
        x = torch.linspace(0.0, 1.0, 2 * channels * s * s).view(2, channels, s, s)
        x.requires_grad_(True)
        for values, word in ((target.mean, "--mean"), (target.std, "--std")):
            if len(values) not in (1, channels) and len(tries) == 1:
                raise TargetError(
                    f"{role} {target.spec}: takes {channels} channel(s), but {word} has "
                    f"{len(values)} numbers"
                )
        try:
            with torch.enable_grad():
                logits = candidate(x)
        except Exception as error:
            failure = failure or error
            continue
        _check_logits(candidate, logits, x, named, role)
        return candidate
    reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
    raise TargetError(
        f"{role} {target.spec}: failed on images of {s}x{s} ({reason}); does it need another --size?"
    ) from failure


def _check_logits(target: Target, logits: object, x: Tensor, named: bool, role: str) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TargetError(
            f"{role} {target.spec}: expected logits of shape (images, classes) = (2, K) for two "
            f"images, found {found}"
        )
    if not bool(logits.isfinite().all()):
        raise TargetError(
            f"{role} {target.spec}: returned NaN or infinity; check its weights and --mean / --std"
        )
    if not target.classes:
        raise TargetError(
            f"{role} {target.spec}: does not name its {logits.shape[1]} classes; give their names in "
            "the order of its outputs with --classes FILE"
        )
    if logits.shape[1] != target.num_classes:
        more = "the file of --classes" if named else "--private"
        raise TargetError(
            f"{role} {target.spec}: has {logits.shape[1]} outputs, {more} has "
            f"{target.num_classes} classes; name the model's classes in the order of its outputs "
            "with --classes FILE"
        )
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.square().sum(), x, allow_unused=True)
    if gradient is None:
        raise TargetError(
            f"{role} {target.spec}: gives no gradient with respect to its input, which white-box "
            "attacks need; was it exported under no_grad?"
        )


def describe_target(target: Target) -> dict[str, Any]:
    """What the run's manifest says of a target."""
    return {
        "spec": target.spec,
        "classes": target.num_classes,
        "image_shape": list(target.image_shape),
        "mean": list(target.mean),
        "std": list(target.std),
    }
