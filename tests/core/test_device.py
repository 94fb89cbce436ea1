"""The choice of a device, and errors for lack of memory."""

from __future__ import annotations

import pytest
import torch

from inversight.core.device import is_out_of_memory, memory_remedy, pick_device
from inversight.core.errors import ConfigError, StageError


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_picks_an_available_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected


def test_rejects_unusable_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="nowhere"):
        pick_device("nowhere")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    ],
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(StageError, match=r"^attack: out of memory: lower batch_size$"),
        memory_remedy("attack", "lower batch_size"),
    ):
        raise error


def test_out_of_memory_on_the_cpu() -> None:
    with pytest.raises(StageError, match="out of memory"), memory_remedy("prior", "lower it"):
        torch.empty(1 << 52, dtype=torch.uint8)


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_remedy("attack", "lower it"):
        raise RuntimeError("shape mismatch")
    assert not is_out_of_memory(ValueError("out of memory"))
