"""Published networks are read as data: nothing in the file runs, and anything but data is rejected."""

from __future__ import annotations

import copyreg
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inversight.core.errors import DataError
from inversight.priors.stylegan2_pickle import read_published
from tests.draws import normal
from tests.priors.hostile_pickles import Hostile, file, generator, network, ran, read, refused
from tests.priors.stylegan2_files import Persistent, augment_pipe, persistent, pickled

# Content of a file


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_reads_networks(path: Path, protocol: int) -> None:
    found = read(pickled(file(augment_pipe=augment_pipe(0.25)), protocol), path)
    classes = {name: one.class_name for name, one in found.networks.items()}
    assert classes == {"G": "Generator", "D": "Discriminator", "G_ema": "Generator"}
    expected = network().state_dict()
    arguments = {"z_dim": 5, "taps": [1, 3, 3, 1], "mapping_kwargs": {"num_layers": 2}}
    for one in found.networks.values():
        assert set(one.state) == set(expected) == {"layer.weight", "layer.filter", "mean"}
        for name, value in expected.items():
            assert torch.equal(one.state[name], value) and one.state[name].dtype == torch.float32
        assert one.arguments == arguments
        assert one.settings["layer.conv_clamp"] == 256 and one.settings["size"] == 8
    assert found.training_set == {"path": "faces.zip", "xflip": True}
    assert found.augmentation == 0.25


def test_converted_networks_have_no_training_set(path: Path) -> None:
    found = read(file(training_set_kwargs=None), path)
    assert found.training_set is None and found.augmentation == 0.0


def state_of(module: object, path: Path) -> Mapping[str, Tensor]:
    return read(file(G=module), path).networks["G"].state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_converts_other_precisions_to_float32(path: Path, dtype: torch.dtype) -> None:
    values = normal(3, 4).to(dtype)
    found = state_of(persistent(network(weight=values)), path)
    assert torch.equal(found["layer.weight"], values.float())


def test_keeps_strides(path: Path) -> None:
    values, part = normal(2, 3, 4, 5).float(), normal(4, 6).float()[1:, 2:5]
    last = values.to(memory_format=torch.channels_last)
    found = state_of(persistent(network(weight=last, part=part)), path)
    assert torch.equal(found["layer.weight"], values) and torch.equal(found["layer.part"], part)


def test_reads_a_shared_tensor_under_each_name(path: Path) -> None:
    shared, module = nn.Parameter(torch.arange(4.0)), nn.Module()
    for name in "ab":
        module.register_parameter(name, shared)
    found = state_of(persistent(module), path)
    assert torch.equal(found["a"], shared) and torch.equal(found["b"], shared)


def test_ignores_arrays_in_attributes(path: Path) -> None:
    """StyleGAN3's layers have some."""
    attributes = {"sizes": np.arange(3), "objects": np.array([{}, ()], object)}
    assert state_of(Persistent("Generator", attributes), path) == {}


# Names and calls


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"),
        ("collections", "OrderedDict.fromkeys"), ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"), ("torch", "load"),
        ("torch", "FloatStorage"), ("numpy", "load"), ("torch.nn.modules.linear", "Linear"),
        ("operator", "methodcaller"), ("", ""),
    ],
)  # fmt: skip
def test_rejects_other_names(path: Path, protocol: int, module: str, name: str) -> None:
    if protocol == 2:
        asked = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n"
    else:
        texts = [b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name)]
        asked = b"\x80\x04" + b"".join(texts) + b"\x93"
    asked += b"\x8c\x02id\x85R."
    refused(asked, path, f"asks for {module}.{name},", "nothing in it was run")


ALLOWED = b"ctorch.storage\n_load_from_bytes\n"
DEEP = b")" + b"\x85" * 300_000


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
        (b"cdnnlib.tflib.network\nNetwork\n)\x81.", "TensorFlow version; convert it"),
        # Sizes that a small file may claim: of the memo and of a text.
        (b"Kxr\xff\xff\xff\x7f.", "expected networks"),
        (b"\x8e" + struct.pack("<Q", 1 << 45) + b"abc", "cut short"),
        # Tuples are hashed recursively, without a limit: as a key, this one would end the process.
        (b"}" + DEEP + b"K\x01s.", ""),
        (b"\x8f(" + DEEP + b"\x90.", ""),
        (b"(" + DEEP + b"\x91.", ""),
    ],
)
def test_rejects_other_instructions(path: Path, program: bytes, part: str) -> None:
    refused(b"\x80\x04" + program, path, part)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\x89PNG\r\n\x1a\n", "a PNG image"), (b"PK\x03\x04", "a zip archive"),
        (b"<!DOCTYPE html>", "a web page"), (b"\x1f\x8b\x08", "a gzip archive"),
        (b"weights", "begins with b'weig'"), (b"", "begins with b''"),
    ],
)  # fmt: skip
def test_rejects_other_files(path: Path, data: bytes, part: str) -> None:
    refused(data, path, part)


def test_rejects_extension_codes(path: Path) -> None:
    """Python's own reader takes them from a cache, without calling find_class."""
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
    refused(file(G=persistent(module)), path, r"a\x1b[31m")


def test_rejects_many_instructions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inversight.priors.restricted_pickle.MAX_INSTRUCTIONS", 1000)
    refused(b"\x80\x02" + b"]" * 2000 + b".", path, "more instructions")


def nested(value: Any, depth: int, wrap: Callable[[Any], Any]) -> Any:
    return wrap(nested(value, depth - 1, wrap)) if depth else value


# The pickler can write a mapping or a list within itself, but no object within its own arguments.
MODULES: dict[str, Any] = {"again": Persistent("Generator", {})}
MODULES["again"].meta["state"]["_modules"] = MODULES
EVIL = Hostile()
LIST: list[Any] = []
LIST.append(LIST)
WIDE = nested(1, 40, lambda x: [x, x])
MANY = {f"x{i}": None for i in range(1000)}
TEN_EACH = nested(
    {}, 6, lambda x: dict.fromkeys("abcdefghij", Persistent("Module", {"_modules": x}))
)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        *((value, "asks for tests.priors.hostile_pickles.ran") for value in (
            EVIL, file(G_ema=EVIL), file(extra=EVIL), file(training_set_kwargs={"path": EVIL}),
            generator({"_modules": {"b4": EVIL}}), generator(module_src=EVIL),
            generator({"_forward_hooks": OrderedDict({"0": EVIL})}),
            generator({"a": np.array([EVIL], object)}),
        )),
        ({}, "found no G, D, G_ema"),
        ([], "found no G, D, G_ema"),
        ({**file(), "D": None}, "found no D"),
        (file(G=OrderedDict(a=torch.ones(1))), "G is not a network"),
        (generator(version=7), "persistence version 7, not 6"),
        (generator(version="6"), "version unknown"),
        (generator(type="function"), "not a class's object"),
        (generator(state=None), "no state"),
        (generator({"_parameters": [1]}), "not a mapping"),
        (generator({"_parameters": {"w": 1.0}}), "G.w is not a tensor"),
        (generator({"_modules": {"b4": "text"}}), "G.b4 is not a network"),
        (generator({"_init_args": (1,)}), "arguments without names"),
        (generator({"_init_kwargs": 3}), "no arguments"),
        (generator({"_modules": MODULES}), "more modules"),
        (generator({"_modules": TEN_EACH}), "more modules"),
        (generator(MANY), "more attributes than any published module"),
        *((generator({kind: MANY}), "more entries than any published module")
          for kind in ("_modules", "_parameters", "_buffers")),
        *((file(G=persistent(network(), arguments={"x": value})), "arguments")
          for value in (WIDE, LIST, [*range(100)], torch.nan, b"bytes", nn.Parameter(torch.ones(1)))),
        (file(training_set_kwargs=[WIDE]), "arguments"),
    ],
)  # fmt: skip
def test_rejects_other_values(path: Path, value: Any, part: str) -> None:
    refused(value, path, part)


def test_rejects_missing_files_and_folders(path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_published(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_published(path.parent)


WHOLE = pickled(file())


def test_rejects_truncated_files(path: Path) -> None:
    for length in range(2, len(WHOLE), 97):
        refused(WHOLE[:length], path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(1, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@example(changes=[(1, 255)])
def test_reads_or_rejects_damaged_files(path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    try:
        read_published(path)
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
