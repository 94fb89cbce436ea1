"""NVIDIA's pickled StyleGAN2-ADA networks, read without running anything in them.

A file is the pickle of {G, D, G_ema, training_set_kwargs, augment_pipe}. Each network is a call of
``torch_utils.persistence._reconstruct_persistent_obj`` with {type, version, module_src, class_name,
state}: unpickled the usual way, module_src is run as a Python module and the class in it takes the
state. Here the file is read as a record (:mod:`inversight.priors.pickle_records`), and the networks'
arguments, parameters and buffers are taken out of it. Tensors hold their values as bytes that are a
pickle again, in torch's older file format; they are read as a record too, then by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversight.core.errors import DataError
from inversight.priors.pickle_records import PERSISTENT, Call, Name, read_records, shown

Scalar = int | float | str | bool | None

_PERSISTENT_OBJECT = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_STORAGE_BYTES = Name("torch.storage", "_load_from_bytes")
_MAPPINGS = frozenset({Name("collections", "OrderedDict"), Name("dnnlib.util", "EasyDict")})
_NUMPY = frozenset(
    Name(module, name)
    for module, names in (
        ("numpy", ("dtype", "ndarray")),
        ("numpy.core.multiarray", ("scalar", "_reconstruct")),
        ("numpy._core.multiarray", ("scalar", "_reconstruct")),
    )
    for name in names
)
_SET = Name("builtins", "set")
NAMES = frozenset(
    {_PERSISTENT_OBJECT, _TENSOR, _PARAMETER, _STORAGE_BYTES, *_MAPPINGS, *_NUMPY, _SET}
)
"""Everything that a published file may name."""
_TENSORFLOW = Name("dnnlib.tflib.network", "Network")

_STORAGES = {
    Name("torch", "FloatStorage"): torch.float32,
    Name("torch", "HalfStorage"): torch.float16,
    Name("torch", "BFloat16Storage"): torch.bfloat16,
    Name("torch", "DoubleStorage"): torch.float64,
}
"""Everything that the bytes of a tensor may name."""
_STORAGE_BEGINS = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""How a file of torch's older format begins."""

_PERSISTENCE_VERSION = 6
_MOST_MODULES = 500
_WIDEST = 200
_DEEPEST = 8
_LONGEST = 64
"""Published networks have some 80 modules, five deep, with 40 attributes and a dozen arguments each.
A record may hold itself, or one thing many times over, so that what is walked must be bounded."""
_OTHER_FILES = {
    b"\x89PNG": "a PNG image",
    b"PK": "a zip archive, as torch.save writes it",
    b"\x1f\x8b": "a gzip archive",
    b"<": "a web page",
}


@dataclass(frozen=True)
class PublishedNetwork:
    """One network of a published file.

    ``arguments`` are the class's keyword arguments, nested mappings of plain values; ``state`` maps
    dotted names to float32 tensors, parameters and buffers alike; ``settings`` maps dotted names to
    the plain attributes of each module.
    """

    class_name: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Scalar] = field(repr=False)


@dataclass(frozen=True)
class PublishedFile:
    """A published file: generator, discriminator, the generator's moving average and what is known
    of their training: arguments of the training set, probability of augmentation at the end."""

    generator: PublishedNetwork
    discriminator: PublishedNetwork
    average: PublishedNetwork
    training_set: Mapping[str, Any] | None
    augmentation: float


def read_published(path: Path) -> PublishedFile:
    """Read the networks that NVIDIA's training or conversion code pickled.

    Raises:
        DataError: not such a file, damaged, or it asks for anything that data does not need.
    """
    try:
        with path.open("rb") as handle:
            _check_beginning(handle.read(4), path)
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
                found = read_records(
                    view, where=str(path), names=NAMES, explained={_TENSORFLOW: _CONVERT}
                )
                return _Collector(str(path), len(view)).file(found)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


_CONVERT = (
    "it was written by the TensorFlow version; convert it where you trust it with legacy.py of "
    "stylegan2-ada-pytorch (python legacy.py --source=OLD.pkl --dest=NEW.pkl) and import NEW.pkl"
)


def _check_beginning(first: bytes, path: Path) -> None:
    if not first.startswith(b"\x80"):
        what = next((t for b, t in _OTHER_FILES.items() if first.startswith(b)), None)
        raise DataError(
            f"{path}: expected networks as StyleGAN2-ADA pickles them, found "
            f"{what or f'a file that begins with {first!r}'}"
        )


class _Collector:
    """Takes networks out of the record of a published file of ``size`` bytes."""

    def __init__(self, where: str, size: int) -> None:
        self.where = where
        self.left = 2 * size
        """Bytes that tensors may still take as float32: half precision doubles."""
        self.storages: dict[int, Tensor] = {}

    def file(self, found: Any) -> PublishedFile:
        """The whole file."""
        parts = found if isinstance(found, dict) else {}
        missing = [name for name in ("G", "D", "G_ema") if not isinstance(parts.get(name), Call)]
        if missing:
            raise self._refusal(f"expected networks G, D and G_ema, found no {', '.join(missing)}")
        training_set = parts.get("training_set_kwargs")
        pipe = parts.get("augment_pipe")
        augmentation = 0.0
        if pipe is not None:
            p = self.network(pipe, "augment_pipe").state.get("p")
            augmentation = 0.0 if p is None or p.numel() != 1 else min(1.0, max(0.0, float(p)))
        return PublishedFile(
            generator=self.network(parts["G"], "G"),
            discriminator=self.network(parts["D"], "D"),
            average=self.network(parts["G_ema"], "G_ema"),
            training_set=None if training_set is None else self._plain(training_set, 0),
            augmentation=augmentation,
        )

    def network(self, found: Any, name: str) -> PublishedNetwork:
        """Network ``name``: its arguments, and the state of its modules, dotted."""
        state: dict[str, Tensor] = {}
        settings: dict[str, Scalar] = {}
        waiting = [("", found, 0)]
        for prefix, module, depth in waiting:
            if len(waiting) > _MOST_MODULES or depth > _DEEPEST:
                raise self._refusal(f"{name} has more modules than any published network")
            _, own = self._persistent(module, f"{name}.{prefix}".rstrip("."))
            for kind in ("_parameters", "_buffers"):
                for key, value in self._mapping(own.get(kind, {}), f"{name}.{prefix}{kind}"):
                    if value is not None:
                        state[prefix + key] = self._tensor(value, f"{name}.{prefix}{key}")
            settings |= {
                f"{prefix}{key}": value
                for key, value in own.items()
                if value is None
                or isinstance(value, (int, str))
                or (isinstance(value, float) and math.isfinite(value))
            }
            waiting += [
                (f"{prefix}{key}.", value, depth + 1)
                for key, value in self._mapping(own.get("_modules", {}), f"{name}.{prefix}_modules")
                if value is not None
            ]
        class_name, own = self._persistent(found, name)
        if own.get("_init_args", ()):
            raise self._refusal(f"{name} was made with arguments without names")
        arguments = self._plain(own.get("_init_kwargs", {}), 0)
        if not isinstance(arguments, dict):
            raise self._refusal(f"{name} has no arguments")
        return PublishedNetwork(class_name, arguments, state, settings)

    def _persistent(self, found: Any, what: str) -> tuple[str, dict[str | int, Any]]:
        """Class name and state of an object that the persistence code pickled."""
        if not isinstance(found, Call) or found.maker != _PERSISTENT_OBJECT:
            raise self._refusal(f"{what} is not a network as StyleGAN2-ADA pickles it")
        meta = found.arguments[0] if len(found.arguments) == 1 else None
        if not isinstance(meta, dict) or meta.get("type") != "class":
            raise self._refusal(f"{what} is not a class's object")
        version, name, state = (meta.get(key) for key in ("version", "class_name", "state"))
        if version != _PERSISTENCE_VERSION:
            found_version = version if type(version) is int else "unknown"
            raise self._refusal(
                f"{what} is of persistence version {found_version}, expected {_PERSISTENCE_VERSION}"
            )
        if not isinstance(name, str) or not isinstance(state, dict):
            raise self._refusal(f"{what} has no class name or no state")
        if len(state) > _WIDEST:
            raise self._refusal(f"{what} has more attributes than any published module")
        return name, state

    def _mapping(self, found: Any, what: str) -> list[tuple[str, Any]]:
        if isinstance(found, Call) and found.maker in _MAPPINGS and not found.arguments:
            found = found.items
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise self._refusal(f"{what} is not a mapping of names")
        if len(found) > _WIDEST:
            raise self._refusal(f"{what} has more entries than any published module's")
        return list(found.items())

    def _plain(self, found: Any, depth: int) -> Any:
        """Nested mappings and lists of plain values, small."""
        if isinstance(found, str):
            return found.encode(errors="replace").decode()
        if found is None or isinstance(found, int):
            return found
        if isinstance(found, float) and math.isfinite(found):
            return found
        if depth < 3:
            if isinstance(found, (list, tuple)) and len(found) <= _LONGEST:
                return [self._plain(value, depth + 1) for value in found]
            if isinstance(found, (dict, Call)):
                pairs = self._mapping(found, "the arguments of a network")
                if len(pairs) <= _LONGEST:
                    return {key: self._plain(value, depth + 1) for key, value in pairs}
        raise self._refusal("the arguments of a network are not plain values")

    def _tensor(self, found: Any, what: str) -> Tensor:
        """The float32 tensor that a record describes, within its storage."""
        if isinstance(found, Call) and found.maker == _PARAMETER and found.arguments:
            found = found.arguments[0]
        if not isinstance(found, Call) or found.maker != _TENSOR or len(found.arguments) < 4:
            raise self._refusal(f"{what} is not a tensor")
        storage, offset, size, stride = found.arguments[:4]
        values = self._storage(storage, what)
        numbers = (offset, *size, *stride) if _are_tuples(size, stride) else (None,)
        if not all(map(_is_size, numbers)) or len(size) != len(stride):
            raise self._refusal(f"{what} has no proper shape")
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        # A stride of 0 would make any number of values out of one.
        if count > len(values) or (count and last >= len(values)):
            raise self._refusal(
                f"{what} declares {count} values, and its storage holds {len(values)} of them"
            )
        self.left -= 4 * count
        if self.left < 0:
            raise self._refusal("its tensors take more than twice its size")
        tensor = torch.as_strided(values, size, stride, offset).float()
        if not bool(tensor.isfinite().all()):
            raise self._refusal(f"{what} holds NaN or infinite values; fetch another snapshot")
        return tensor

    def _storage(self, found: Any, what: str) -> Tensor:
        """The values of a storage, in one dimension."""
        if not isinstance(found, Call) or found.maker != _STORAGE_BYTES:
            raise self._refusal(f"{what} has no storage")
        data = found.arguments[0] if len(found.arguments) == 1 else None
        if not isinstance(data, bytes) or not data.startswith(_STORAGE_BEGINS):
            raise self._refusal(f"{what}: its values are not in torch's older file format")
        # By the bytes, which the record keeps: what is loaded is then no larger than the file.
        if id(data) not in self.storages:
            self.storages[id(data)] = self._load(data, what)
        return self.storages[id(data)]

    def _load(self, data: bytes, what: str) -> Tensor:
        """``torch.load(weights_only=True)``, once the bytes are known to be one plain storage.

        Read as a record first: torch takes whatever size the bytes declare, leaves unset what they do
        not fill, and unpacks archives; and its refusal names no file.
        """
        stream = io.BytesIO(data)
        where = f"{self.where}: {shown(what)}: its values"
        names = frozenset(_STORAGES)
        parts = [read_records(stream, where=where, names=names, persistent=True) for _ in range(5)]
        described = _described_storage(parts[3])
        if described is None:
            raise self._refusal(f"{what}: its values are not one storage")
        dtype, key, count = described
        if parts[4] != [key] or len(data) - stream.tell() != 8 + count * dtype.itemsize:
            raise self._refusal(
                f"{what}: its storage declares {count} values, and its bytes hold others"
            )
        try:
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return torch.empty(0, dtype=dtype).set_(storage)
        except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
            reason = shown(str(error).partition("\n")[0])
            raise self._refusal(f"{what}: its values cannot be read ({reason})") from None

    def _refusal(self, what: str) -> DataError:
        return DataError(f"{self.where}: {shown(what, 300)}")


def _are_tuples(*values: Any) -> bool:
    return all(isinstance(v, tuple) and len(v) <= _DEEPEST for v in values)


def _is_size(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**63


def _described_storage(found: Any) -> tuple[torch.dtype, str, int] | None:
    """Type, key and count of the persistent id ('storage', kind, key, location, count, None)."""
    if not isinstance(found, Call) or found.maker != PERSISTENT:
        return None
    (saved,) = found.arguments
    if not isinstance(saved, tuple) or len(saved) != 6 or saved[0] != "storage":
        return None
    _, kind, key, _, count, view = saved
    if not isinstance(kind, Name) or not isinstance(key, str) or not _is_size(count):
        return None
    return (_STORAGES[kind], key, count) if view is None else None
