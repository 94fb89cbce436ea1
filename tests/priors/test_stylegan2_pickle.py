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
from torch import nn

from inversight.core.errors import DataError
from inversight.core.seeding import generator
from inversight.priors.stylegan2_pickle import read_published
from tests.priors.hostile_pickles import Hostile, file, network, ran, read, refused
from tests.priors.stylegan2_files import Persistent, augment_pipe, persistent, pickled


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
    refused(data, path, "asks for tests.priors.hostile_pickles.ran")


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
    copyreg.add_extension(ran.__module__, "ran", 200)
    try:
        pickle.loads(b"\x80\x02\x82\xc8.")  # fills the cache
        refused(b"\x80\x02\x82\xc8)R.", path, "EXT1")
    finally:
        copyreg.remove_extension(ran.__module__, "ran", 200)
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
