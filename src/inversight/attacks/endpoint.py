"""A target that answers over HTTP, with batches, retries, a rate limit and a cache of answers.

Its spec is ``endpoint:http://HOST/PATH[?access=label&rate=5&...]``, with the settings of
:class:`EndpointSettings`.
Each batch is one POST of JSON. The request is ``{"images": [PNG in base64, ...]}``, 8-bit images of the
size that the service expects. The answer is ``{"probabilities": [[...], ...]}``, with a row for each
image that sums to 1 and has one number for each class, or ``{"labels": [...]}``, with the predicted class
of each image by its name or its number from 0.
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
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeout

from inversight.attacks.queries import black_box
from inversight.core.config import from_mapping, settings
from inversight.core.errors import ConfigError, StageError, TargetError
from inversight.core.imaging import to_uint8
from inversight.data import to_pil
from inversight.models.spec import SERVICE
from inversight.models.target import Access, Target

_LEAST = 1e-12
"""Lower bound of probabilities, so that their logarithms are finite."""
_SLACK = 0.01
"""Largest deviation of a row's sum from 1; services round probabilities."""
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_HEADERS = ("host", "content-type", "content-length", "transfer-encoding", "connection")


class EndpointError(StageError):
    """The service gave no usable answer in all tries."""


@settings
class EndpointSettings:
    """How an endpoint is called; all but the URL can be given in the spec, as in ``?rate=5``."""

    url: str
    """The address to which images are posted."""
    access: Access = Access.SCORES
    """What it answers with: scores or label."""
    batch: PositiveInt = 64
    """Images in a request."""
    rate: PositiveFloat | None = None
    """Requests a second at most; None: as many as it answers."""
    timeout: PositiveFloat = 30.0
    """Seconds to wait for an answer."""
    retries: NonNegativeInt = 5
    """Repetitions of a request that failed."""
    pause: PositiveFloat = 1.0
    """Seconds before the first repetition; each further one waits twice as long."""
    longest: PositiveFloat = 120.0
    """Longest wait in seconds, even if the service asks for more (Retry-After)."""
    remembered: NonNegativeInt = 20_000
    """Answers that are cached, so that the same image is not sent again."""


@dataclass
class Endpoint:
    """Send images to a service and check its answers.

    sent: images that were answered. warn: called once if the service answers more than it should.
    headers: sent with every request, and never to another address (redirects are not followed). They
    may be secrets: no message and no file contains them.
    """

    settings: EndpointSettings
    classes: tuple[str, ...]
    warn: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sent: int = 0
    _known: dict[bytes, Tensor] = field(default_factory=dict)
    _last: float = -float("inf")
    _warned: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Return logarithms of probabilities (N, K) for images (N, C, H, W) in [0, 1].

        With label access they are 0 for the predicted class and -1 for the others.

        Raises:
            EndpointError: no usable answer in all tries.
            TargetError: the service refuses requests like this one.
        """
        pictures = [_png(image) for image in to_uint8(images).cpu()]
        keys = [hashlib.sha256(picture).digest() for picture in pictures]
        by_key = dict(zip(keys, pictures, strict=True))
        answers = {key: self._known[key] for key in by_key if key in self._known}
        fresh = [(key, picture) for key, picture in by_key.items() if key not in answers]
        for start in range(0, len(fresh), self.settings.batch):
            names, some = zip(*fresh[start : start + self.settings.batch], strict=True)
            answers |= zip(names, self._ask(some), strict=True)
            self.sent += len(some)
        room = self.settings.remembered - len(self._known)
        self._known |= {k: answers[k] for k, _ in fresh[: max(0, room)]}
        return torch.stack([answers[k] for k in keys]).to(images.device)

    def _ask(self, pictures: Sequence[bytes]) -> Tensor:
        """Return the answer (n, K) to one request, repeated until it succeeds or tries run out."""
        body = json.dumps({"images": [base64.b64encode(p).decode() for p in pictures]}).encode()
        how = self.settings
        retry = Retry(
            how.retries, allowed_methods=None, backoff_factor=how.pause, backoff_max=how.longest
        )  # fmt: skip
        while True:
            response = None
            try:
                response = self._post(body)
                return self._read(response, len(pictures))
            except (HTTPError, _WrongAnswerError) as error:
                reason = str(error) or type(error).__name__
                # A refused connection is a timeout in urllib3's classes.
                if isinstance(error, HTTPTimeout) and not isinstance(error, NewConnectionError):
                    reason = f"no answer within {how.timeout:g} s"
            try:
                retry = retry.increment("POST", how.url, response)
            except MaxRetryError:
                raise EndpointError(
                    f"{self._name}: {reason}, in the last of {how.retries + 1} tries; "
                    f"{self.sent:,} images were answered before"
                ) from None
            wait = max(how.pause, retry.get_backoff_time(), _retry_after(retry, response))
            self.sleep(min(how.longest, wait))

    @cached_property
    def _connections(self) -> PoolManager:
        parts = urlsplit(self.settings.url)
        proxy = getproxies().get(parts.scheme)
        if proxy and not proxy_bypass(parts.hostname or ""):
            return ProxyManager(proxy)
        return PoolManager()

    def _post(self, body: bytes) -> BaseHTTPResponse:
        """Send one request, not before the rate allows it."""
        if self.settings.rate is not None:
            wait = self._last + 1.0 / self.settings.rate - time.monotonic()
            if wait > 0:
                self.sleep(wait)
        self._last = time.monotonic()
        return self._connections.request(
            "POST", self.settings.url, body=body, retries=False, redirect=False,
            headers={**self.headers, "Content-Type": "application/json"},
            timeout=self.settings.timeout,
        )  # fmt: skip

    def _read(self, response: BaseHTTPResponse, count: int) -> Tensor:
        """Return the scores (count, K) of a response.

        Raises:
            TargetError: the service refuses the request, or gives labels instead of scores.
            _WrongAnswerError: anything else that is wrong; the request can be repeated.
        """
        status = f"status {response.status} {response.reason}"
        if response.status >= 500 or response.status in (408, 425, 429):
            raise _WrongAnswerError(status)
        if response.status >= 300:
            raise TargetError(
                f"{self._name}: refuses the request ({status}); expected a service that "
                'answers a POST of {"images": [PNG in base64, ...]}'
            )
        try:
            answer = json.loads(response.data)
        except ValueError:
            raise _WrongAnswerError("answers with something that is not JSON") from None
        return self._checked(answer, count)

    def _checked(self, answer: Any, count: int) -> Tensor:
        wants_scores = self.settings.access is Access.SCORES
        given = answer if isinstance(answer, dict) else {}
        if "probabilities" in given:
            scores = self._scores(given["probabilities"], count)
            if wants_scores:
                return scores
            if not self._warned:
                self.warn(
                    f"{self._name}: was given as label-only but answers with scores, which an attacker "
                    "has too; only labels are used, remove ?access=label to use the scores"
                )
                self._warned = True
            labels = scores.argmax(1)
        elif "labels" not in given:
            expected = "probabilities" if wants_scores else "labels"
            raise _WrongAnswerError(f'expected an answer {{"{expected}": [...]}}, found another')
        elif wants_scores:
            raise TargetError(
                f"{self._name}: answers with labels alone; add ?access=label to the address, and "
                "choose an --attack that needs no more"
            )
        else:
            labels = self._labels(given["labels"], count)
        # 0 for the label and -1 elsewhere, which cannot be mistaken for probabilities.
        return F.one_hot(labels, len(self.classes)).float() - 1.0

    def _scores(self, rows: Any, count: int) -> Tensor:
        try:
            found = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise _WrongAnswerError("expected rows of probabilities, all as long") from None
        expected = (count, len(self.classes))
        if found.shape != expected:
            raise _WrongAnswerError(
                f"expected probabilities of shape {expected}, found {tuple(found.shape)}"
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
        for label in rows:
            if isinstance(label, (list, dict)) or label not in position:
                raise _WrongAnswerError(
                    f"label {label!r} is not among the {len(self.classes)} classes"
                )
        return torch.tensor([position[label] for label in rows])

    @property
    def _name(self) -> str:
        return f"--target {SERVICE}{self.settings.url}"


def read_spec(spec: str) -> EndpointSettings:
    """Parse ``endpoint:URL``; settings are taken from its query, whose other parts stay in the URL.

    Raises:
        TargetError: the address is not http or https, or a setting is out of range.
    """
    parts = urlsplit(spec.removeprefix(SERVICE))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TargetError(
            f"--target {spec}: expected {SERVICE}http://HOST/PATH, {SERVICE}https://HOST/PATH"
        )
    names = set(EndpointSettings.__dataclass_fields__) - {"url"}
    query = parse_qsl(parts.query, keep_blank_values=True)
    values = {k: v for k, v in query if k in names}
    rest = urlencode([(k, v) for k, v in query if k not in names])
    values["url"] = urlunsplit(parts._replace(query=rest))
    try:
        found = from_mapping(EndpointSettings, values, where=f"--target {spec}: ")
    except ConfigError as error:
        raise TargetError(str(error)) from None
    if found.access is Access.WHITE_BOX:
        raise TargetError(f"--target {spec}: access: expected scores or label, found white-box")
    return found


def read_headers(
    texts: Sequence[str], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return headers from texts ``NAME=VARIABLE``; values come from environment variables.

    Raises:
        ConfigError: another form, a header that is set automatically, or a variable that is not set or
            is not valid in a header. The message does not contain the value.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, variable = text.partition("=")
        if not _TOKEN.fullmatch(name) or not _VARIABLE.fullmatch(variable):
            # The text itself may be a secret in the wrong place.
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
    spec: str, *, classes: Sequence[str], image_shape: tuple[int, int, int],
    headers: Mapping[str, str] | None = None, warn: Callable[[str], None] = lambda _: None,
) -> tuple[Target, Endpoint]:  # fmt: skip
    """Return the service that ``spec`` names as a target, after a trial with one grey image.

    classes: names in the order of its probabilities. image_shape: (C, H, W) of the images to send.
    headers: sent with every request, see :func:`read_headers`.

    Raises:
        TargetError: the address is wrong, or the service gives no usable answer.
    """
    given = read_spec(spec)
    # Fail early: nothing is lost yet.
    early = replace(given, retries=min(1, given.retries))
    endpoint = Endpoint(early, tuple(classes), warn, headers=headers or {})
    target = black_box(endpoint, classes=classes, image_shape=image_shape, spec=spec)
    try:
        target(torch.full((1, *image_shape), 0.5))
    except EndpointError as error:
        raise TargetError(str(error)) from None
    endpoint.settings, endpoint.sent = given, 0
    return target.restricted(given.access), endpoint


class _WrongAnswerError(Exception):
    """An answer that cannot be used; another try may help."""


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _retry_after(retry: Retry, response: BaseHTTPResponse | None) -> float:
    """Return the seconds that a service asks to wait, given as a number or a date; else 0."""
    try:
        return 0.0 if response is None else retry.get_retry_after(response) or 0.0
    except InvalidHeader:
        return 0.0
