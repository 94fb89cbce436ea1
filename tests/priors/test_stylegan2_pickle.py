"""Published networks are read as data: nothing in the file runs, and what is not data is refused."""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inversight.core.errors import DataError
from inversight.core.seeding import generator
from inversight.priors.stylegan2_pickle import PublishedFile, read_published
from tests.priors.stylegan2_files import Persistent, augment_pipe, persistent, pickled

RAN = []
"""What a hostile file made happen; nothing ever."""


def ran(*what: object) -> None:
    RAN.append(what)


class Hostile:
    """Runs ``function`` when it is unpickled the usual way."""

    def __init__(self, function: Callable[..., object] = ran, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def network(**tensors: Tensor) -> nn.Module:
    """Two modules deep, with parameters, buffers, and what is not there."""
    module, child = nn.Module(), nn.Module()
    for name, value in (tensors or {"weight": torch.arange(6.0).reshape(2, 3)}).items():
        child.register_parameter(name, nn.Parameter(value))
    child.register_parameter("bias", None)
    child.register_buffer("filter", torch.ones(2, 2) / 4)
    module.add_module("layer", child)
    module.add_module("nothing", None)
    module.register_buffer("mean", torch.tensor(3.0))
    return module


def file(**parts: Any) -> dict[str, Any]:
    arguments = {"z_dim": 5, "taps": [1, 3, 3, 1], "mapping_kwargs": {"num_layers": 2}}
    made = {
        name: persistent(network(), kind, arguments, {"layer.conv_clamp": 256, "size": 8})
        for name, kind in (("G", "Generator"), ("D", "Discriminator"), ("G_ema", "Generator"))
    }
    known = {"training_set_kwargs": {"path": "faces.zip", "xflip": True}, "augment_pipe": None}
    return {**known, **made, **parts}


def read(data: bytes, path: Path) -> PublishedFile:
    path.write_bytes(data)
    return read_published(path)


def refused(data: bytes, path: Path, *parts: str) -> None:
    """One clear line that names the file, and nothing ran."""
    RAN.clear()
    with pytest.raises(DataError) as caught:
        read(data, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and message.isprintable()
    assert len(message) < 600
    for part in parts:
        assert part in message
    assert not RAN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pkl"


# What is in a file


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_networks_are_read(path: Path, protocol: int) -> None:
    found = read(pickled(file(augment_pipe=augment_pipe(0.25)), protocol), path)
    assert (found.networks["G"].class_name, found.networks["D"].class_name) == (
        "Generator",
        "Discriminator",
    )
    expected = network().state_dict()
    for one in found.networks.values():
        assert set(one.state) == set(expected) == {"layer.weight", "layer.filter", "mean"}
        for name, value in expected.items():
            assert torch.equal(one.state[name], value) and one.state[name].dtype == torch.float32
        assert one.arguments == {
            "z_dim": 5,
            "taps": [1, 3, 3, 1],
            "mapping_kwargs": {"num_layers": 2},
        }
        assert one.settings["layer.conv_clamp"] == 256 and one.settings["size"] == 8
    assert found.training_set == {"path": "faces.zip", "xflip": True}
    assert found.augmentation == 0.25


def test_converted_networks_have_no_training_set(path: Path) -> None:
    found = read(pickled(file(training_set_kwargs=None)), path)
    assert found.training_set is None and found.augmentation == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(3, 4, generator=generator(0)).to(dtype)
    found = read(pickled(file(G=persistent(network(weight=values)))), path)
    assert torch.equal(found.networks["G"].state["layer.weight"], values.float())


def test_strides_are_kept(path: Path) -> None:
    values = torch.randn(2, 3, 4, 5, generator=generator(0))
    last = values.to(memory_format=torch.channels_last)
    part = torch.randn(4, 6, generator=generator(1))[1:, 2:5]
    found = read(pickled(file(G=persistent(network(weight=last, part=part)))), path)
    assert torch.equal(found.networks["G"].state["layer.weight"], values)
    assert torch.equal(found.networks["G"].state["layer.part"], part)


def test_a_shared_tensor_is_read_once_for_each_name(path: Path) -> None:
    shared = nn.Parameter(torch.arange(4.0))
    module = nn.Module()
    module.register_parameter("a", shared)
    module.register_parameter("b", shared)
    found = read(pickled(file(G=persistent(module))), path)
    assert torch.equal(found.networks["G"].state["a"], shared)
    assert torch.equal(found.networks["G"].state["b"], shared)


def test_arrays_in_attributes_do_no_harm(path: Path) -> None:
    """StyleGAN3's layers have some; they are not looked at."""
    module = Persistent("Generator", {"sizes": np.arange(3), "objects": np.array([{}, ()], object)})
    assert read(pickled(file(G=module)), path).networks["G"].state == {}


# Names and calls


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("collections", "OrderedDict.fromkeys"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch", "load"),
        ("torch", "FloatStorage"),
        ("numpy", "load"),
        ("torch.nn.modules.linear", "Linear"),
        ("operator", "methodcaller"),
        ("", ""),
    ],
)
def test_other_names_are_refused(path: Path, protocol: int, module: str, name: str) -> None:
    if protocol == 2:
        asked = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n"
    else:
        texts = [b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name)]
        asked = b"\x80\x04" + b"".join(texts) + b"\x93"
    refused(
        asked + b"\x8c\x02id\x85R.", path, f"asks for {module}.{name},", "nothing in it was run"
    )


@pytest.mark.parametrize(
    "place",
    [
        lambda evil: evil,
        lambda evil: file(G_ema=evil),
        lambda evil: file(extra=evil),
        lambda evil: file(training_set_kwargs={"path": evil}),
        lambda evil: file(D=Persistent("Discriminator", {"_modules": {"b4": evil}})),
        lambda evil: file(D=Persistent("Discriminator", {}, module_src=evil)),
        lambda evil: file(G=Persistent("Generator", {"_forward_hooks": OrderedDict({"0": evil})})),
        lambda evil: file(G=Persistent("Generator", {"a": np.array([evil], object)})),
    ],
)
def test_a_call_anywhere_is_refused_and_not_made(
    path: Path, place: Callable[[Hostile], Any]
) -> None:
    data = pickled(place(Hostile()))
    refused(data, path, "asks for tests.priors.test_stylegan2_pickle.ran")


SYSTEM = b"cos\nsystem\n"
ALLOWED = b"ctorch.storage\n_load_from_bytes\n"


@pytest.mark.parametrize(
    ("program", "part"),
    [
        # A class and its arguments from the stack, as protocol 0 and 1 have it.
        (b"(S'id'\nios\nsystem\n.", "STRING"),
        (b"(\x8c\x02idios\nsystem\n.", "INST"),
        (b"(" + ALLOWED + b"\x8c\x02ido.", "OBJ"),
        (ALLOWED + b")}\x92.", "NEWOBJ_EX"),
        # Attributes of an allowed name: the interpreter would set them on the function itself.
        (ALLOWED + b"N}\x8c\x0c__defaults__)s\x86b.", "did not make"),
        (b"]}b.", "did not make"),
        # The result of a call is called.
        (ALLOWED + b")R)R.", "not a name"),
        (ALLOWED + b")R)\x81.", "not a name"),
        (ALLOWED + b"]R.", "not a name"),
        (b"}K\x01a.", "append"),
        (ALLOWED + b"K\x01K\x02s.", "item assignment"),
        (b"}]K\x02s.", "not those of a mapping"),
        (b"\x8c\x02id]\x93.", "STACK_GLOBAL"),
        (b"\x8c\x02idQ.", "BINPERSID"),
        (b"P0\n.", "PERSID"),
        (b"\x80\x09.", "protocol: 9"),
    ],
)
def test_other_instructions_are_refused(path: Path, program: bytes, part: str) -> None:
    refused(b"\x80\x02" + program, path, part)


@pytest.mark.parametrize("program", [b"}%sK\x01s.", b"\x8f(%s\x90.", b"(%s\x91."])
def test_deeply_nested_keys_do_not_overflow_the_stack(path: Path, program: bytes) -> None:
    """Tuples are hashed recursively, without a limit: as a key, this one would end the process."""
    refused(b"\x80\x04" + program % (b")" + b"\x85" * 300_000), path)


def test_extension_codes_are_refused(path: Path) -> None:
    """The interpreter's own reader takes them from a cache, without asking its find_class."""
    copyreg.add_extension(__name__, "ran", 200)
    try:
        pickle.loads(b"\x80\x02\x82\xc8.")  # fills the cache
        refused(b"\x80\x02\x82\xc8)R.", path, "EXT1")
    finally:
        copyreg.remove_extension(__name__, "ran", 200)
        copyreg.clear_extension_cache()


def test_messages_hold_no_control_characters(path: Path) -> None:
    name = "\x1b[31m\r" + "x" * 300
    text = b"\x8c\x02osX" + struct.pack("<I", len(name)) + name.encode()
    refused(b"\x80\x04" + text + b"\x93.", path, r"os.\x1b[31m\rx")
    module = nn.Module()
    module.register_buffer("a\x1b[31m", torch.tensor(torch.nan))
    refused(pickled(file(G=persistent(module))), path, r"a\x1b[31m")


def test_tensorflow_files_say_how_to_convert_them(path: Path) -> None:
    refused(b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81.", path, "TensorFlow", "legacy.py")


# Sizes that a small file may claim


def test_a_large_memo_index_takes_no_memory(path: Path) -> None:
    refused(b"\x80\x02Kxr\xff\xff\xff\x7f.", path, "expected networks")


def test_a_large_length_takes_no_memory(path: Path) -> None:
    refused(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 45) + b"abc", path, "cut short")


def test_many_instructions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inversight.priors.restricted_pickle.MAX_INSTRUCTIONS", 1000)
    refused(b"\x80\x02" + b"]" * 2000 + b".", path, "more instructions")


def test_modules_within_themselves_are_refused(path: Path) -> None:
    loop = Persistent("Generator", {"_modules": {}})
    loop.meta["state"]["_modules"]["again"] = loop
    # The pickler cannot write an object within its own arguments; its state's mapping it can.
    loop.meta["state"]["_modules"] = shared = {}
    shared["again"] = Persistent("Generator", {"_modules": shared})
    refused(pickled(file(G=loop)), path, "more modules")
    wide: dict[str, Any] = {}
    for _ in range(6):
        wide = {f"m{i}": Persistent("Module", {"_modules": wide}) for i in range(10)}
    refused(pickled(file(G=Persistent("Generator", {"_modules": wide}))), path, "more modules")


@pytest.mark.parametrize("kind", ["_modules", "_parameters", "_buffers", "attributes"])
def test_modules_wider_than_any_are_refused(path: Path, kind: str) -> None:
    """Such a module within itself would be as many entries as its width to the power of its depth."""
    many: dict[str, Any] = {f"x{i}": None for i in range(1000)}
    own = many if kind == "attributes" else {kind: many}
    refused(pickled(file(G=Persistent("Generator", own))), path, "more", "any published module")


def test_deep_and_wide_arguments_are_refused(path: Path) -> None:
    wide: Any = 1
    for _ in range(40):
        wide = [wide, wide]
    loop: list[Any] = []
    loop.append(loop)
    for value in (wide, loop, list(range(100)), torch.nan, b"bytes", nn.Parameter(torch.ones(1))):
        refused(pickled(file(G=persistent(network(), arguments={"x": value}))), path, "arguments")
    refused(pickled(file(training_set_kwargs=[wide])), path, "arguments")


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
        (legacy(Hostile()), "asks for tests.priors.test_stylegan2_pickle.ran"),
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


def test_other_files_are_refused(path: Path) -> None:
    archive = io.BytesIO()
    torch.save({"a": torch.ones(1)}, archive)
    for data, part in (
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (archive.getvalue(), "a zip archive"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"weights", "begins with b'weig'"),
        (b"", "begins with b''"),
    ):
        refused(data, path, part)
    with pytest.raises(DataError, match="no such file"):
        read_published(path.parent / "nowhere.pkl")
    with pytest.raises(DataError, match="cannot be read"):
        read_published(path.parent)


WHOLE = pickled(file())


def test_a_cut_file_is_refused_wherever_it_is_cut(path: Path) -> None:
    for length in range(2, len(WHOLE), 97):
        refused(WHOLE[:length], path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(1, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@example(changes=[(1, 255)])
def test_a_damaged_file_is_read_or_refused(path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    try:
        read_published(path)
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
