"""Images of latents that are asked for again, as by attacks on several models that share a pool."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

_MOST_BYTES = 256 << 20


class ImageCache:
    """Images by the content of their latents, of batches without gradients.

    The batches that were used last are kept, up to ``most_bytes``. A copy for another process is empty.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._images: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        return ImageCache, (self.most_bytes,)

    def get(self, latents: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the images of ``latents``: those that ``make`` gave for equal ones, or makes now."""
        if torch.is_grad_enabled() or latents.requires_grad:
            return make(latents)
        content = latents.detach().cpu().contiguous().view(torch.uint8).numpy()
        facts = repr((latents.shape, latents.dtype, torch.is_autocast_enabled(latents.device.type)))
        key = hashlib.sha256(facts.encode() + content.tobytes()).digest()
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        images = make(latents)
        self._images[key] = images
        self._bytes += images.nbytes
        while self._bytes > self.most_bytes:
            self._bytes -= self._images.popitem(last=False)[1].nbytes
        return images
