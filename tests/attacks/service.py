"""A local service that classifies images, with right or wrong answers."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def good(body: Any) -> Answer:
    return 200, {}, json.dumps(body).encode()


def halves(images: Tensor) -> Tensor:
    """Probabilities (N, 3): left lighter, right lighter, both dark."""
    side = images.shape[-1] // 2
    left, right = images[..., :side].mean((1, 2, 3)), images[..., side:].mean((1, 2, 3))
    return (8.0 * torch.stack([left - right, right - left, 0.5 - left - right], dim=1)).softmax(1)


def probabilities(images: Tensor) -> Answer:
    return good({"probabilities": halves(images).tolist()})


def labels(images: Tensor) -> Answer:
    return good({"labels": halves(images).argmax(1).tolist()})


@dataclass
class Service:
    """answers: what each request gets, in order, then ``usual`` for all others. waited: seconds."""

    usual: Callable[[Tensor], Answer]
    answers: list[Callable[[Tensor], Answer]] = field(default_factory=list)
    requests: list[Tensor] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    url: str = ""

    @property
    def images(self) -> int:
        return sum(map(len, self.requests))

    def reply(self, images: Tensor) -> Answer:
        self.requests.append(images)
        return (self.answers.pop(0) if self.answers else self.usual)(images)


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            service.headers.append(dict(self.headers))
            size = int(self.headers["Content-Length"])
            given = json.loads(self.rfile.read(size))["images"]
            opened = [Image.open(io.BytesIO(base64.b64decode(one))) for one in given]
            status, headers, body = service.reply(torch.stack([to_tensor(one) for one in opened]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:  # what a POST becomes where it is redirected
            service.headers.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/predict"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
