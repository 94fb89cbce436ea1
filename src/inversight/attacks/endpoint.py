"""A target that answers over HTTP: batched, retried, rate-limited, and never asked the same twice.

Its spec is ``endpoint:http://HOST/PATH[?access=label&rate=5&...]``, the settings of :class:`Calling`.
The wire format is one POST of JSON a batch. The request is ``{"images": [PNG in base64, ...]}``,
8-bit images of the size that the service takes. The answer is ``{"probabilities": [[...], ...]}``, a
row that sums to 1 for each image with one number for each class, or ``{"labels": [...]}``, for each
image the predicted class, by its name or its number from 0.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.queries import black_box
from inversight.core.config import from_mapping, settings
from inversight.core.errors import ConfigError, StageError, TargetError
from inversight.core.imaging import to_uint8
from inversight.data import to_pil
from inversight.models.spec import SERVICE
from inversight.models.target import Access, Target

_LEAST = 1e-12
"""What a probability of 0 is taken for, so that its logarithm is a number."""
_SLACK = 0.01
"""How far from 1 a row of probabilities may sum; services round them."""
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_HEADERS = ("host", "content-type", "content-length", "transfer-encoding", "connection")


class EndpointError(StageError):
    """The service gave no usable answer, however often it was asked."""


@settings
class Calling:
    """How an endpoint is called; all but the first can be given in the spec, as in ``?rate=5``."""

    url: str
    """Where images are posted to."""
    access: Access = Access.SCORES
    """What it answers with: scores or label."""
    batch: PositiveInt = 64
    """Images in a request."""
    rate: PositiveFloat | None = None
    """Requests a second at most; None: as many as it answers."""
    timeout: PositiveFloat = 30.0
    """Seconds until a request counts as lost."""
    retries: NonNegativeInt = 5
    """Further tries after a request that failed."""
    pause: PositiveFloat = 1.0
    """Seconds before the first further try; each next one waits twice as long."""
    longest: PositiveFloat = 120.0
    """Seconds to wait at most, also where the service asks for more (Retry-After)."""
    remembered: NonNegativeInt = 20_000
    """Answers that are remembered, so that the same image is not sent again."""


@dataclass
class Endpoint:
    """Asks a service about images and checks what it says.

    sent: images that were sent, those of tries that failed not counted. warn: told once if it says
    more than it should. headers: sent with every request to the address itself, and nowhere that it
    redirects to; they may be secrets, and stand in no message and no file.
    """

    calling: Calling
    classes: tuple[str, ...]
    warn: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sent: int = 0
    _known: dict[bytes, Tensor] = field(default_factory=dict)
    _last: float = -float("inf")
    _warned: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Logarithms of probabilities (N, K) for images (N, C, H, W) in [0, 1].

        With label access: 0 for the predicted class and -1 for the others.

        Raises:
            EndpointError: no usable answer in all tries.
            TargetError: the service refuses requests like this one.
        """
        pictures = [_png(image) for image in to_uint8(images).cpu()]
        keys = [hashlib.sha256(picture).digest() for picture in pictures]
        fresh = {k: p for k, p in zip(keys, pictures, strict=True) if k not in self._known}
        answers: dict[bytes, Tensor] = {}
        names = list(fresh)
        for start in range(0, len(names), self.calling.batch):
            some = names[start : start + self.calling.batch]
            rows = self._tried([fresh[name] for name in some])
            self.sent += len(some)
            answers.update(zip(some, rows, strict=True))
        found = torch.stack([answers[k] if k in answers else self._known[k] for k in keys])
        for name, row in answers.items():
            if len(self._known) < self.calling.remembered:
                self._known[name] = row
        return found.to(images.device)

    def _tried(self, pictures: list[bytes]) -> Tensor:
        """The answer to one request (n, K), after as many tries as it takes."""
        body = json.dumps({"images": [base64.b64encode(p).decode() for p in pictures]}).encode()
        pause = self.calling.pause
        for left in range(self.calling.retries, -1, -1):
            asked = None
            try:
                return self._read(self._posted(body), len(pictures))
            except HTTPError as error:
                reason = f"status {error.code} {error.reason}"
                if error.code not in (408, 425, 429) and error.code < 500:
                    raise TargetError(
                        f"{self._name}: refuses the request ({reason}); expected a service that "
                        'answers a POST of {"images": [PNG in base64, ...]}'
                    ) from None
                asked = _retry_after(error.headers.get("Retry-After"))
                error.close()
            except TimeoutError:
                reason = f"no answer within {self.calling.timeout:g} s"
            except (URLError, HTTPException, OSError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                if "timed out" in reason:
                    reason = f"no answer within {self.calling.timeout:g} s"
            except _WrongAnswerError as error:
                reason = str(error)
            if left:
                self.sleep(min(self.calling.longest, max(pause, asked or 0.0)))
                pause *= 2.0
        raise EndpointError(
            f"{self._name}: {reason}, in the last of {self.calling.retries + 1} tries; "
            f"{self.sent:,} images were answered before"
        )

    def _posted(self, body: bytes) -> Any:
        if self.calling.rate is not None:
            wait = self._last + 1.0 / self.calling.rate - time.monotonic()
            if wait > 0:
                self.sleep(wait)
        self._last = time.monotonic()
        request = Request(  # noqa: S310 (http and https alone, see read_spec)
            self.calling.url, data=body, headers={"Content-Type": "application/json"}
        )
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        with urlopen(request, timeout=self.calling.timeout) as response:  # noqa: S310
            raw = response.read()
        try:
            return json.loads(raw)
        except ValueError:
            raise _WrongAnswerError("answers with something that is not JSON") from None

    def _read(self, answer: Any, count: int) -> Tensor:
        expected = {Access.SCORES: "probabilities", Access.LABEL: "labels"}[self.calling.access]
        if not isinstance(answer, dict) or not {"probabilities", "labels"} & set(answer):
            raise _WrongAnswerError(f'expected an answer {{"{expected}": [...]}}, found another')
        if self.calling.access is Access.SCORES and "probabilities" not in answer:
            raise TargetError(
                f"{self._name}: answers with labels alone; add ?access=label to the address, and "
                "choose an --attack that needs no more"
            )
        if "probabilities" in answer:
            scores = self._scores(answer["probabilities"], count)
            if self.calling.access is Access.SCORES:
                return scores
            if not self._warned:
                self.warn(
                    f"{self._name}: was named as label-only and answers with scores: an attacker "
                    "has those too; only the labels are used, take away ?access=label to use them"
                )
                self._warned = True
            return _one_hot(scores.argmax(1), len(self.classes))
        return _one_hot(self._labels(answer["labels"], count), len(self.classes))

    def _scores(self, rows: Any, count: int) -> Tensor:
        try:
            found = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise _WrongAnswerError("expected rows of probabilities, all as long") from None
        if tuple(found.shape) != (count, len(self.classes)):
            raise _WrongAnswerError(
                f"expected probabilities of shape {(count, len(self.classes))}, found "
                f"{tuple(found.shape)}"
            )
        if not bool((found >= 0).all()) or bool(((found.sum(1) - 1).abs() > _SLACK).any()):
            raise _WrongAnswerError("expected probabilities, found rows that do not sum to 1")
        return found.clamp_min(_LEAST).log().float()

    def _labels(self, rows: Any, count: int) -> Tensor:
        if not isinstance(rows, list) or len(rows) != count:
            found = len(rows) if isinstance(rows, list) else type(rows).__name__
            raise _WrongAnswerError(f"expected {count} labels, found {found}")
        position: dict[Any, int] = {name: i for i, name in enumerate(self.classes)}
        position |= {i: i for i in range(len(self.classes))}
        unknown = next((x for x in rows if isinstance(x, (list, dict)) or x not in position), None)
        if unknown is not None:
            raise _WrongAnswerError(
                f"label {unknown!r} is not among the {len(self.classes)} classes"
            )
        return torch.tensor([position[x] for x in rows])

    @property
    def _name(self) -> str:
        return f"--target {SERVICE}{self.calling.url}"


def read_spec(spec: str) -> Calling:
    """``endpoint:URL`` with settings of :class:`Calling` in its query; others stay the service's.

    Raises:
        TargetError: no address of http or https, or a setting is out of range.
    """
    parts = urlsplit(spec.removeprefix(SERVICE))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TargetError(
            f"--target {spec}: expected {SERVICE}http://HOST/PATH, {SERVICE}https://HOST/PATH"
        )
    names = set(Calling.__dataclass_fields__) - {"url"}
    query = parse_qsl(parts.query, keep_blank_values=True)
    url = urlunsplit(parts._replace(query=urlencode([(k, v) for k, v in query if k not in names])))
    given = {k: v for k, v in query if k in names}
    try:
        calling = from_mapping(Calling, {"url": url, **given}, where=f"--target {spec}: ")
    except ConfigError as error:
        raise TargetError(str(error)) from None
    if calling.access is Access.WHITE_BOX:
        raise TargetError(f"--target {spec}: access: expected scores or label, found white-box")
    return calling


def read_headers(
    texts: Sequence[str], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """``NAME=VARIABLE`` -> NAME and what the environment's VARIABLE holds, which no message repeats.

    Raises:
        ConfigError: another form, a header of the protocol's own, or a variable that is not set or
            holds what no header can.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, variable = text.partition("=")
        if not _TOKEN.fullmatch(name) or not _VARIABLE.fullmatch(variable):
            # The text itself may be a secret that was put in the wrong place.
            raise ConfigError(
                "--endpoint-header: expected NAME=VARIABLE, a header and the environment variable "
                "that holds its value, as in Authorization=SERVICE_TOKEN"
            )
        if name.lower() in _OWN_HEADERS:
            raise ConfigError(f"--endpoint-header {name}: is set by inversight itself")
        value = environment.get(variable, "").strip()
        if not value:
            raise ConfigError(
                f"--endpoint-header {name}: the environment variable {variable} is not set; export it "
                "with the header's whole value, as in 'Bearer ...'"
            )
        if not all(" " <= letter <= "~" for letter in value):
            raise ConfigError(
                f"--endpoint-header {name}: the environment variable {variable} holds line breaks or "
                "letters that no header can have"
            )
        found[name] = value
    return found


def endpoint_target(
    spec: str,
    *,
    classes: Sequence[str],
    image_shape: tuple[int, int, int],
    headers: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Target, Endpoint]:
    """The service that ``spec`` names as a target, asked about one grey image to see that it answers.

    classes: names in the order of its probabilities. image_shape: (C, H, W) of what it is sent. headers:
    sent with every request, see :func:`read_headers`.

    Raises:
        TargetError: the address is wrong, or the service gives no usable answer.
    """
    endpoint = Endpoint(read_spec(spec), tuple(classes), warn, headers=headers or {})
    target = black_box(endpoint, classes=classes, image_shape=image_shape, spec=spec)
    target = target.restricted(endpoint.calling.access)
    patient = endpoint.calling
    try:
        # Nothing is lost yet, so that there is no need to wait long.
        endpoint.calling = replace(patient, retries=min(1, patient.retries))
        target(torch.full((1, *image_shape), 0.5))
    except EndpointError as error:
        raise TargetError(str(error)) from None
    finally:
        endpoint.calling = patient
    endpoint.sent = 0
    return target, endpoint


class _WrongAnswerError(Exception):
    """What came back is not what was asked for."""


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """0 for the label and -1 elsewhere: an order, and no probabilities to be taken for one."""
    return torch.nn.functional.one_hot(labels, classes).float() - 1.0


def _retry_after(value: str | None) -> float | None:
    """Seconds that a service asks to wait, given as a number or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
