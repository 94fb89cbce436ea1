"""Tensors of published networks are read as data, whatever a file claims about their bytes."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.priors.hostile_pickles import Hostile, file, generator, network, read, refused
from tests.priors.stylegan2_files import persistent


def legacy(value: Any, archive: bool = False) -> bytes:
    """Return ``value``, or a tensor's storage, in torch's older file format or as an archive."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def storage_of(values: Tensor) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(
        wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True
    )


def storage(data: Any) -> Hostile:
    return Hostile(torch.storage._load_from_bytes, data)


def tensor(data: Any, offset: Any = 0, size: Any = (1,), stride: Any = (1,)) -> Hostile:
    """Return what is pickled as a tensor of a storage, or of its bytes, with any arguments."""
    values = data if isinstance(data, Hostile) else storage(data)
    arguments = (values, offset, size, stride, False, OrderedDict())
    return Hostile(torch._utils._rebuild_tensor_v2, *arguments)


def with_tensors(**tensors: object) -> dict[str, Any]:
    return generator({"_buffers": tensors})


SIX = legacy(storage_of(torch.arange(6.0)))


def test_reads_a_plain_tensor(path: Path) -> None:
    found = read(with_tensors(x=tensor(SIX, 1, (2, 2), (3, 1))), path)
    assert found.networks["G"].state["x"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)), (1, (6,), (1,)), (0, (2, 4), (3, 1)), (0, (1 << 20, 1 << 20), (0, 0)),
        (0, (7,), (0,)), (0, (1 << 62, 4), (1, 1)), (0, (1 << 2000,), (1,)), (-1, (2,), (1,)),
        (0, (2,), (-1,)), (0, (-2,), (1,)), (0, (2,), (1, 1)), (0, (2.0,), (1,)),
        (0, (True,), (1,)), (0, [2], [1]), (0, (1,) * 100, (1,) * 100), ("0", (2,), (1,)),
    ],
)  # fmt: skip
def test_rejects_shapes_beyond_the_storage(path: Path, offset: Any, size: Any, stride: Any) -> None:
    refused(with_tensors(x=tensor(SIX, offset, size, stride)), path, "G.x")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rejects_values_that_are_not_finite(path: Path, value: float) -> None:
    module = network(weight=torch.tensor([1.0, value]))
    refused(file(D=persistent(module)), path, "D.layer.weight", "NaN or infinite")


def test_rejects_many_large_tensors_of_one_storage(path: Path) -> None:
    shared = storage(legacy(storage_of(torch.zeros(50_000))))
    views = {f"x{i}": tensor(shared, size=(50_000,)) for i in range(20)}
    refused(with_tensors(**views), path, "twice its size")


def test_loads_bytes_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    found = read(with_tensors(**{f"x{i}": tensor(SIX, i) for i in range(5)}), path)
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


def test_reads_a_storage_of_that_format(path: Path) -> None:
    value = tensor(storage_file(identity(), data=struct.pack("<f", 2.5)), 0, (), ())
    assert read(with_tensors(x=value), path).networks["G"].state["x"].item() == 2.5


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
        # torch.load would unpack any size that an archive declares.
        (legacy(torch.zeros(10), archive=True), "older file format"),
    ],
)
def test_rejects_other_bytes_of_a_tensor(path: Path, data: Any, part: str) -> None:
    refused(with_tensors(x=tensor(data)), path, "G.x", part)
