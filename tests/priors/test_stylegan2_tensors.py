"""Tensors of published networks are read as data, whatever a file says of their bytes."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.priors.hostile_pickles import Hostile, file, network, read, refused
from tests.priors.stylegan2_files import Persistent, persistent, pickled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pkl"


# Tensors


def legacy(value: Any) -> bytes:
    """``value``, or a tensor's storage, in torch's older file format."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def storage_of(values: Tensor) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(
        wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True
    )


class Recipe:
    """Pickled as a call of ``torch``'s own functions, with any arguments."""

    def __init__(self, function: Callable[..., object], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def tensor(data: bytes, offset: Any, size: Any, stride: Any) -> Recipe:
    storage = Recipe(torch.storage._load_from_bytes, data)
    arguments = (storage, offset, size, stride, False, OrderedDict())
    return Recipe(torch._utils._rebuild_tensor_v2, *arguments)


def with_tensor(found: Any) -> bytes:
    return pickled(file(G=Persistent("Generator", {"_buffers": {"x": found}})))


SIX = legacy(storage_of(torch.arange(6.0)))


def test_a_plain_tensor_is_read(path: Path) -> None:
    found = read(with_tensor(tensor(SIX, 1, (2, 2), (3, 1))), path)
    assert found.networks["G"].state["x"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 4), (3, 1)),
        (0, (1 << 20, 1 << 20), (0, 0)),
        (0, (7,), (0,)),
        (0, (1 << 62, 4), (1, 1)),
        (0, (1 << 2000,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2,), (1, 1)),
        (0, (2.0,), (1,)),
        (0, (True,), (1,)),
        (0, [2], [1]),
        (0, (1,) * 100, (1,) * 100),
        ("0", (2,), (1,)),
    ],
)
def test_shapes_beyond_the_storage_are_refused(
    path: Path, offset: Any, size: Any, stride: Any
) -> None:
    refused(with_tensor(tensor(SIX, offset, size, stride)), path, "G.x")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(path: Path, value: float) -> None:
    module = network(weight=torch.tensor([1.0, value]))
    refused(pickled(file(D=persistent(module))), path, "D.layer.weight", "NaN or infinite")


def test_one_storage_for_many_large_tensors_is_refused(path: Path) -> None:
    values = legacy(storage_of(torch.zeros(50_000)))
    storage = Recipe(torch.storage._load_from_bytes, values)
    views = {
        f"x{i}": Recipe(
            torch._utils._rebuild_tensor_v2, storage, 0, (50_000,), (1,), False, OrderedDict()
        )
        for i in range(20)
    }
    refused(pickled(file(G=Persistent("Generator", {"_buffers": views}))), path, "twice its size")


def test_bytes_are_loaded_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    views = {f"x{i}": tensor(SIX, i, (1,), (1,)) for i in range(5)}
    found = read(pickled(file(G=Persistent("Generator", {"_buffers": views}))), path)
    assert [float(found.networks["G"].state[f"x{i}"]) for i in range(5)] == [0, 1, 2, 3, 4]
    assert len(loads) == 1 + 2 * len(network().state_dict())


def storage_file(storage: Any, keys: Any = ("0",), data: bytes = b"\0" * 4) -> bytes:
    """A storage in torch's older file format, saying whatever it should say."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return storage if value == "here" else None

    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, buffer, protocol=2)
    Pickler(buffer, protocol=2).dump("here")
    pickle.dump(list(keys), buffer, protocol=2)
    return buffer.getvalue() + struct.pack("<q", 1) + data


def identity(*, count: Any = 1, kind: Any = torch.FloatStorage, view: Any = None) -> Any:
    return ("storage", kind, "0", "cpu", count, view)


def test_a_storage_of_that_format_is_read(path: Path) -> None:
    data = storage_file(identity(), data=struct.pack("<f", 2.5))
    assert read(with_tensor(tensor(data, 0, (), ())), path).networks["G"].state["x"].item() == 2.5


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (legacy(Hostile()), "asks for tests.priors.hostile_pickles.ran"),
        (legacy([storage_of(torch.ones(2)), Hostile()]), "asks for"),
        (storage_file(("module", Hostile(), "file.py", "source")), "asks for"),
        (storage_file(identity(kind=torch.nn.Linear)), "asks for torch.nn.modules.linear.Linear"),
        (storage_file(identity(kind=torch.LongStorage)), "asks for torch.LongStorage"),
        (storage_file(identity(count=1 << 40)), "its bytes hold others"),
        (storage_file(identity(count=2)), "its bytes hold others"),
        (storage_file(identity(count=-1)), "not one storage"),
        (storage_file(identity(view=("1", 0, 1))), "not one storage"),
        (storage_file(identity(), keys=()), "its bytes hold others"),
        (storage_file(identity(), keys=("0", "0")), "its bytes hold others"),
        (storage_file(identity(), data=b""), "its bytes hold others"),
        (SIX[:-1], "its bytes hold others"),
        (SIX[:60], "cut short"),
        (b"", "older file format"),
        (b"not a storage", "older file format"),
        (pickle.dumps(Hostile(), protocol=2), "older file format"),
        ("text", "older file format"),
    ],
)
def test_what_is_nested_in_a_tensor_is_refused(path: Path, data: Any, part: str) -> None:
    refused(with_tensor(tensor(data, 0, (1,), (1,))), path, "G.x", part)


def test_archives_nested_in_a_tensor_are_refused(path: Path) -> None:
    """torch.load would unpack whatever size an archive declares."""
    buffer = io.BytesIO()
    torch.save(torch.zeros(10), buffer)
    refused(with_tensor(tensor(buffer.getvalue(), 0, (1,), (1,))), path, "older file format")


# Other layouts and other files


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({}, "found no G, D, G_ema"),
        ([], "found no G, D, G_ema"),
        ({**file(), "D": None}, "found no D"),
        (file(G=OrderedDict(a=torch.ones(1))), "G is not a network"),
        (file(G=Persistent("Generator", {}, version=7)), "persistence version 7, expected 6"),
        (file(G=Persistent("Generator", {}, version="6")), "version unknown"),
        (file(G=Persistent("Generator", {}, type="function")), "not a class's object"),
        (file(G=Persistent("Generator", {}, state=None)), "no state"),
        (file(G=Persistent("Generator", {"_parameters": [1]})), "not a mapping"),
        (file(G=Persistent("Generator", {"_parameters": {"w": 1.0}})), "G.w is not a tensor"),
        (file(G=Persistent("Generator", {"_modules": {"b4": "text"}})), "G.b4 is not a network"),
        (file(G=Persistent("Generator", {"_init_args": (1,)})), "arguments without names"),
        (file(G=Persistent("Generator", {"_init_kwargs": 3})), "no arguments"),
    ],
)
def test_other_layouts_are_refused(path: Path, value: Any, part: str) -> None:
    refused(pickled(value), path, part)
