"""Reads NVIDIA's pickled StyleGAN2-ADA networks without running anything in them.

A file is the pickle of {G, D, G_ema, training_set_kwargs, augment_pipe}. Each network is a call of
``torch_utils.persistence._reconstruct_persistent_obj`` with {type, version, module_src, class_name,
state}: unpickling it with Python's own reader would run module_src. Instead
:mod:`inversight.priors.restricted_pickle` reads the calls as data, from which arguments, parameters and
buffers are extracted. The values of a tensor are bytes in torch's older file format, which is a pickle
too; they are checked in the same way before ``torch.load(weights_only=True)`` reads them.
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
from inversight.priors.restricted_pickle import PERSISTENT, Call, Name, printable, read_pickle

Scalar = int | float | str | bool | None

_PERSISTENT_OBJECT = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_STORAGE_BYTES = Name("torch.storage", "_load_from_bytes")
_MAPPINGS = {Name("collections", "OrderedDict"), Name("dnnlib.util", "EasyDict")}
_NUMPY = {Name("numpy", "dtype"), Name("numpy", "ndarray")} | {
    Name(f"numpy.{core}.multiarray", name)
    for core in ("core", "_core")
    for name in ("scalar", "_reconstruct")
}
_CALLS = {_PERSISTENT_OBJECT, _TENSOR, _PARAMETER, _STORAGE_BYTES, Name("builtins", "set")}
NAMES = frozenset(_CALLS | _MAPPINGS | _NUMPY)
"""Everything that a published file may import."""
_EXPLAINED = {
    Name("dnnlib.tflib.network", "Network"): (
        "it was written by the TensorFlow version; convert it where you trust it with legacy.py of "
        "stylegan2-ada-pytorch (python legacy.py --source=OLD.pkl --dest=NEW.pkl) and import NEW.pkl"
    )
}
_STORAGES = {
    Name("torch", "FloatStorage"): torch.float32,
    Name("torch", "HalfStorage"): torch.float16,
    Name("torch", "BFloat16Storage"): torch.bfloat16,
    Name("torch", "DoubleStorage"): torch.float64,
}
"""Everything that the bytes of a tensor may import."""
_STORAGE_BEGINS = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of a file of torch's older format."""

_PERSISTENCE_VERSION = 6
_MAX_MODULES, _MAX_ENTRIES, _MAX_DEPTH, _MAX_LENGTH = 500, 200, 8, 64
"""Published networks have about 80 modules, nested five deep, with 40 attributes and a dozen arguments
each. The traversal is bounded because a file may contain itself, or one object many times."""
_OTHER_FILES = {
    b"\x89PNG": "a PNG image", b"PK": "a zip archive, as torch.save writes it",
    b"\x1f\x8b": "a gzip archive", b"<": "a web page",
}  # fmt: skip


@dataclass(frozen=True)
class PublishedNetwork:
    """One network of a published file.

    Attributes:
        class_name: name of its class.
        arguments: keyword arguments of the class, nested mappings of plain values.
        state: parameters and buffers, float32, by dotted name.
        settings: plain attributes of each module, by dotted name.
    """

    class_name: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Scalar] = field(repr=False)


@dataclass(frozen=True)
class PublishedFile:
    """Contents of a published file.

    Attributes:
        networks: generator G, discriminator D and moving average of the generator G_ema.
        training_set: arguments of the training set, if known.
        augmentation: probability of augmentation at the end of training.
    """

    networks: Mapping[str, PublishedNetwork]
    training_set: Mapping[str, Any] | None
    augmentation: float


def read_published(path: Path) -> PublishedFile:
    """Read networks pickled by NVIDIA's training or conversion code.

    Raises:
        DataError: not such a file, damaged, or it imports anything that data does not need.
    """
    try:
        with path.open("rb") as handle:
            first = handle.read(4)
            if not first.startswith(b"\x80"):
                others = (text for start, text in _OTHER_FILES.items() if first.startswith(start))
                raise DataError(
                    f"{path}: expected networks as StyleGAN2-ADA pickles them, found "
                    f"{next(others, f'a file that begins with {first!r}')}"
                )
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
                found = read_pickle(view, where=str(path), names=NAMES, explained=_EXPLAINED)
                return _Extraction(str(path), len(view)).file(found)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


class _Extraction:
    """Extracts networks from the content of a published file of ``size`` bytes."""

    def __init__(self, where: str, size: int) -> None:
        self.where = where
        self.left = 2 * size
        """Bytes that tensors may still take as float32, twice their size in half precision."""
        self.storages: dict[int, Tensor] = {}

    def file(self, found: Any) -> PublishedFile:
        """Return the contents of the whole file."""
        parts = found if isinstance(found, dict) else {}
        names = ("G", "D", "G_ema")
        if missing := [name for name in names if not isinstance(parts.get(name), Call)]:
            raise self._error(f"expected networks G, D and G_ema, found no {', '.join(missing)}")
        training_set = parts.get("training_set_kwargs")
        pipe = parts.get("augment_pipe")
        p = None if pipe is None else self.network(pipe, "augment_pipe").state.get("p")
        return PublishedFile(
            {name: self.network(parts[name], name) for name in names},
            None if training_set is None else self._plain(training_set, 0),
            0.0 if p is None or p.numel() != 1 else min(1.0, max(0.0, float(p))),
        )

    def network(self, found: Any, name: str) -> PublishedNetwork:
        """Return the arguments of network ``name`` and the state of its modules."""
        state: dict[str, Tensor] = {}
        settings: dict[str, Scalar] = {}
        waiting = [("", found, 0)]
        for prefix, module, depth in waiting:
            if len(waiting) > _MAX_MODULES or depth > _MAX_DEPTH:
                raise self._error(f"{name} has more modules than any published network")
            where = f"{name}.{prefix}"
            _, own = self._persistent(module, where.rstrip("."))
            for kind in ("_parameters", "_buffers"):
                for key, value in self._entries(own, kind, where):
                    state[prefix + key] = self._tensor(value, f"{where}{key}")
            settings |= {f"{prefix}{key}": value for key, value in own.items() if _is_plain(value)}
            for key, child in self._entries(own, "_modules", where):
                waiting.append((f"{prefix}{key}.", child, depth + 1))
        class_name, own = self._persistent(found, name)
        if own.get("_init_args", ()):
            raise self._error(f"{name} was made with arguments without names")
        arguments = self._plain(own.get("_init_kwargs", {}), 0)
        if not isinstance(arguments, dict):
            raise self._error(f"{name} has no arguments")
        return PublishedNetwork(class_name, arguments, state, settings)

    def _persistent(self, found: Any, what: str) -> tuple[str, dict[str | int, Any]]:
        """Return class name and state of an object that the persistence code pickled."""
        if not isinstance(found, Call) or found.function != _PERSISTENT_OBJECT:
            raise self._error(f"{what} is not a network as StyleGAN2-ADA pickles it")
        meta = found.arguments[0] if len(found.arguments) == 1 else None
        if not isinstance(meta, dict) or meta.get("type") != "class":
            raise self._error(f"{what} is not a class's object")
        version, name, state = (meta.get(key) for key in ("version", "class_name", "state"))
        if version != _PERSISTENCE_VERSION:
            shown = version if type(version) is int else "unknown"
            raise self._error(f"{what} has persistence version {shown}, not {_PERSISTENCE_VERSION}")
        if not isinstance(name, str) or not isinstance(state, dict):
            raise self._error(f"{what} has no class name or no state")
        if len(state) > _MAX_ENTRIES:
            raise self._error(f"{what} has more attributes than any published module")
        return name, state

    def _entries(self, own: Mapping[Any, Any], kind: str, where: str) -> list[tuple[str, Any]]:
        """Return the parameters, buffers or modules of a module, without those that are None."""
        entries = self._mapping(own.get(kind, {}), f"{where}{kind}")
        return [(key, value) for key, value in entries if value is not None]

    def _mapping(self, found: Any, what: str) -> list[tuple[str, Any]]:
        """Return the entries of a mapping of names."""
        if isinstance(found, Call) and found.function in _MAPPINGS and not found.arguments:
            found = found.items
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise self._error(f"{what} is not a mapping of names")
        if len(found) > _MAX_ENTRIES:
            raise self._error(f"{what} has more entries than any published module's")
        return list(found.items())

    def _plain(self, found: Any, depth: int) -> Any:
        """Return small nested mappings and lists of plain values."""
        if _is_plain(found):
            return found.encode(errors="replace").decode() if isinstance(found, str) else found
        if depth < 3:
            if isinstance(found, (list, tuple)) and len(found) <= _MAX_LENGTH:
                return [self._plain(value, depth + 1) for value in found]
            if isinstance(found, (dict, Call)):
                pairs = self._mapping(found, "the arguments of a network")
                if len(pairs) <= _MAX_LENGTH:
                    return {key: self._plain(value, depth + 1) for key, value in pairs}
        raise self._error("the arguments of a network are not plain values")

    def _tensor(self, found: Any, what: str) -> Tensor:
        """Return the float32 tensor that calls in the file describe, if it lies within its storage."""
        if isinstance(found, Call) and found.function == _PARAMETER and found.arguments:
            found = found.arguments[0]
        if not isinstance(found, Call) or found.function != _TENSOR or len(found.arguments) < 4:
            raise self._error(f"{what} is not a tensor")
        storage, offset, size, stride = found.arguments[:4]
        values = self._storage(storage, what)
        tuples = all(isinstance(t, tuple) and len(t) <= _MAX_DEPTH for t in (size, stride))
        if not tuples or len(size) != len(stride) or not _are_counts(offset, *size, *stride):
            raise self._error(f"{what} has no proper shape")
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        # With a stride of 0, one value could become any number of values.
        if count > len(values) or (count and last >= len(values)):
            raise self._error(f"{what} declares {count} values, its storage holds {len(values)}")
        self.left -= 4 * count
        if self.left < 0:
            raise self._error("its tensors take more than twice its size")
        tensor = torch.as_strided(values, size, stride, offset).float()
        if not bool(tensor.isfinite().all()):
            raise self._error(f"{what} holds NaN or infinite values; fetch another snapshot")
        return tensor

    def _storage(self, found: Any, what: str) -> Tensor:
        """Return the values of a storage, (N,)."""
        if not isinstance(found, Call) or found.function != _STORAGE_BYTES:
            raise self._error(f"{what} has no storage")
        data = found.arguments[0] if len(found.arguments) == 1 else None
        if not isinstance(data, bytes) or not data.startswith(_STORAGE_BEGINS):
            raise self._error(f"{what}: its values are not in torch's older file format")
        # The same bytes are loaded once, so the loaded tensors are no larger than the file.
        if id(data) not in self.storages:
            self.storages[id(data)] = self._load(data, what)
        return self.storages[id(data)]

    def _load(self, data: bytes, what: str) -> Tensor:
        """Check that the bytes are one plain storage, and call ``torch.load(weights_only=True)``.

        torch alone would allocate any declared size, leave missing values uninitialised, unpack
        archives, and raise errors that do not name the file.
        """
        stream = io.BytesIO(data)
        where = f"{self.where}: {printable(what)}: its values"
        names = frozenset(_STORAGES)
        parts = [read_pickle(stream, where=where, names=names, persistent=True) for _ in range(5)]
        match parts[3]:
            case Call(
                function=function,
                arguments=(("storage", Name() as kind, str() as key, _, count, None),),
            ) if function == PERSISTENT and _are_counts(count):
                dtype = _STORAGES[kind]
            case _:
                raise self._error(f"{what}: its values are not one storage")
        if parts[4] != [key] or len(data) - stream.tell() != 8 + count * dtype.itemsize:
            raise self._error(f"{what}: its storage declares {count} values, its bytes hold others")
        try:
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return torch.empty(0, dtype=dtype).set_(storage)
        except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
            reason = printable(str(error).partition("\n")[0])
            raise self._error(f"{what}: its values cannot be read ({reason})") from None

    def _error(self, what: str) -> DataError:
        return DataError(f"{self.where}: {printable(what, 300)}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (int, str))


def _are_counts(*values: Any) -> bool:
    return all(type(n) is int and 0 <= n < 2**63 for n in values)
