"""A target over HTTP: batches, retries, the rate and the cache of answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.attacks import BrepMi, CmaEs, run_attack
from inversight.attacks.endpoint import (
    Endpoint,
    EndpointError,
    EndpointSettings,
    endpoint_target,
    read_headers,
    read_spec,
)
from inversight.core.errors import ConfigError, InputError, TargetError
from inversight.core.imaging import to_float, to_uint8
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from tests.attacks.service import Answer, Service, good, halves, labels, probabilities, serving
from tests.attacks.toy import FlatPrior

CLASSES = ("left", "right", "dark")
IMAGES = to_float(to_uint8(torch.rand(5, 1, 8, 8, generator=generator(0))))


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(Service(probabilities)) as one:
        yield one


def endpoint_of(service: Service, **settings: Any) -> Endpoint:
    given = EndpointSettings(url=service.url, **settings)
    return Endpoint(given, CLASSES, sleep=service.waited.append)


def connect(service: Service, query: str = "", **given: Any) -> tuple[Target, Endpoint]:
    spec = f"endpoint:{service.url}{query}"
    return endpoint_target(spec, classes=CLASSES, image_shape=(1, 8, 8), **given)


def status(code: int, **headers: str) -> Callable[[Tensor], Answer]:
    return lambda images: (code, {k.replace("_", "-"): v for k, v in headers.items()}, b"")


def body(content: Any) -> Callable[[Tensor], Answer]:
    return lambda images: good(content)


@pytest.mark.parametrize("channels", [1, 3])
def test_returns_the_answer_of_the_service(service: Service, channels: int) -> None:
    images = to_float(to_uint8(torch.rand(5, channels, 8, 8, generator=generator(1))))
    torch.testing.assert_close(endpoint_of(service)(images), halves(images).log())
    torch.testing.assert_close(service.requests[0], images)


def test_splits_images_into_batches(service: Service) -> None:
    endpoint = endpoint_of(service, batch=2)
    torch.testing.assert_close(endpoint(IMAGES), halves(IMAGES).log())
    assert [len(r) for r in service.requests] == [2, 2, 1]
    assert endpoint.sent == 5 and not service.waited


def test_answers_are_cached(service: Service) -> None:
    endpoint = endpoint_of(service)
    endpoint(IMAGES[:3])
    torch.testing.assert_close(endpoint(IMAGES.flip(0)), halves(IMAGES.flip(0)).log())
    endpoint(torch.cat([IMAGES, IMAGES]))
    assert service.images == endpoint.sent == 5
    forgetful = endpoint_of(service, remembered=2)
    for _ in range(2):
        forgetful(IMAGES)
    assert forgetful.sent == 5 + 3


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        (status(503), 1.0),
        (status(429), 1.0),
        (status(429, Retry_After="7"), 7.0),
        (status(429, Retry_After="900"), 120.0),
        (lambda _: (200, {}, b"<html>"), 1.0),
        (lambda images: good({"probabilities": halves(images)[:, :2].tolist()}), 1.0),
        (lambda images: good({"probabilities": halves(images)[:1].tolist()}), 1.0),
        (lambda images: good({"probabilities": (9 * halves(images)).tolist()}), 1.0),
        (body({"probabilities": [[0.2, 0.8], [1.0]]}), 1.0),
        (body([1, 2]), 1.0),
    ],
)
def test_wrong_answers_are_retried(
    service: Service, first: Callable[[Tensor], Answer], asked: float
) -> None:
    service.answers = [first]
    endpoint = endpoint_of(service)
    torch.testing.assert_close(endpoint(IMAGES), halves(IMAGES).log())
    assert service.waited == [asked] and endpoint.sent == 5 and len(service.requests) == 2


def test_retry_after_can_be_a_date(service: Service) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    service.answers = [status(503, Retry_After=soon), status(503, Retry_After="soon")]
    endpoint_of(service)(IMAGES)
    assert 25 < service.waited[0] <= 30 and service.waited[1] == 2.0


@pytest.mark.parametrize(
    ("access", "answer", "message"),
    [
        ("scores", status(429, Retry_After="1"), "status 429 Too Many Requests"),
        ("scores", status(500), "status 500"),
        ("scores", lambda _: (200, {}, b"nothing"), "something that is not JSON"),
        (
            "scores", lambda images: good({"probabilities": halves(images)[:, :2].tolist()}),
            r"expected probabilities of shape \(5, 3\), found \(5, 2\)",
        ),
        ("scores", body({"scores": 1}), 'expected an answer {"probabilities"'),
        ("label", body({"labels": [0, 1]}), "expected 5 labels, found 2"),
        ("label", body({"labels": [0, 1, 2, 3, 0]}), "label 3 is not among the 3 classes"),
        ("label", body({"labels": [0, 1, [2], 0, 0]}), r"label \[2\] is not among"),
        ("label", body({"labels": "left"}), "expected 5 labels, found str"),
    ],
)  # fmt: skip
def test_the_error_after_all_retries(
    service: Service, access: str, answer: Callable[[Tensor], Answer], message: str
) -> None:
    service.usual = answer
    with pytest.raises(EndpointError, match=message) as caught:
        endpoint_of(service, access=access, retries=3)(IMAGES)
    assert service.waited == [1.0, 2.0, 4.0] and len(service.requests) == 4
    assert "in the last of 4 tries; 0 images were answered before" in str(caught.value)
    assert service.url in str(caught.value) and "\n" not in str(caught.value)


def test_timeouts_are_retried(service: Service) -> None:
    over = threading.Event()

    def never(images: Tensor) -> Answer:
        over.wait()
        return probabilities(images)

    try:
        service.usual = never
        with pytest.raises(EndpointError, match=r"no answer within 0.1 s, in the last of 1 tries"):
            endpoint_of(service, timeout=0.1, retries=0)(IMAGES)
        service.usual, service.answers = probabilities, [never]
        endpoint = endpoint_of(service, timeout=2.0)
        torch.testing.assert_close(endpoint(IMAGES), halves(IMAGES).log())
        assert service.waited == [1.0]
    finally:
        over.set()


def test_a_refused_connection() -> None:
    with serving(Service(probabilities)) as gone:
        pass
    with pytest.raises(EndpointError, match="Connection refused"):
        endpoint_of(gone, retries=1)(IMAGES)


@pytest.mark.parametrize("code", [400, 401, 404, 413])
def test_client_errors_are_not_retried(service: Service, code: int) -> None:
    service.usual = status(code)
    with pytest.raises(TargetError, match=f"refuses the request .status {code}"):
        endpoint_of(service)(IMAGES)
    assert len(service.requests) == 1 and not service.waited


def test_the_rate_is_limited(service: Service) -> None:
    endpoint_of(service, batch=1, rate=4.0)(IMAGES)
    waited = service.waited
    assert len(waited) == 4 and all(0.0 < s <= 0.25 for s in waited) and sum(waited) > 0.6


# Labels


def check_labels(service: Service, **given: Any) -> None:
    """Check that the answers of a label-only target are the classes as one-hot rows."""
    target, _ = connect(service, "?access=label", **given)
    assert target.access is Access.LABEL
    expected = torch.nn.functional.one_hot(halves(IMAGES).argmax(1), 3).float()
    assert torch.equal(target(IMAGES), expected)


@pytest.mark.parametrize("named", [True, False])
def test_labels_are_numbers_or_names(service: Service, named: bool) -> None:
    def named_labels(images: Tensor) -> Answer:
        return good({"labels": [CLASSES[i] for i in halves(images).argmax(1)]})

    service.usual = named_labels if named else labels
    check_labels(service)


def test_warns_of_a_label_only_service_with_scores(service: Service) -> None:
    warnings: list[str] = []
    check_labels(service, warn=warnings.append)
    assert len(warnings) == 1 and "answers with scores" in warnings[0]


def test_labels_instead_of_scores_are_refused(service: Service) -> None:
    service.usual = labels
    with pytest.raises(TargetError, match=r"answers with labels alone; add .access=label"):
        connect(service)


# Headers

SECRET = {"Authorization": "Bearer s3cret"}


def test_headers_are_sent_but_not_printed(service: Service) -> None:
    endpoint = endpoint_of(service)
    endpoint.headers = SECRET
    endpoint(IMAGES)
    assert service.headers[0]["Authorization"] == "Bearer s3cret"
    assert service.headers[0]["Content-Type"] == "application/json"
    assert "s3cret" not in repr(endpoint)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(service: Service, code: int) -> None:
    with serving(Service(probabilities)) as other:
        service.usual = status(code, Location=other.url)
        endpoint = endpoint_of(service, retries=0)
        endpoint.headers = SECRET
        with pytest.raises((EndpointError, TargetError)) as caught:
            endpoint(IMAGES)
        assert "s3cret" not in str(caught.value)
        assert service.headers[0]["Authorization"] == "Bearer s3cret"
        assert not other.headers


def test_headers_come_from_the_environment() -> None:
    known = {"TOKEN": " Bearer s3cret\n", "KEY": "k"}
    found = read_headers(["Authorization=TOKEN", "X-Api-Key=KEY"], known)
    assert found == {"Authorization": "Bearer s3cret", "X-Api-Key": "k"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Authorization=NONE", "the environment variable NONE is not set"),
        ("Authorization=EMPTY", "the environment variable EMPTY is not set"),
        ("Authorization=LINES", "LINES holds line breaks"),
        ("Authorization: Bearer s3cret", "expected NAME=VARIABLE"),
        ("Authorization=Bearer s3cret", "expected NAME=VARIABLE"),
        ("Content-Type=TOKEN", "is set by inversight itself"),
    ],
)
def test_errors_of_headers_do_not_contain_the_secret(text: str, message: str) -> None:
    known = {"EMPTY": "", "LINES": "s3cret\nX: y", "TOKEN": "s3cret"}
    with pytest.raises(ConfigError, match=message) as caught:
        read_headers([text], known)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


# As a target


def test_settings_are_read_from_the_spec() -> None:
    found = read_spec("endpoint:http://host:8/a/b?key=v&access=label&rate=2.5&batch=3")
    assert found == EndpointSettings(
        url="http://host:8/a/b?key=v", access=Access.LABEL, rate=2.5, batch=3
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("endpoint:file:///etc/passwd", "expected endpoint:http://HOST"),
        ("endpoint:host/predict", "expected endpoint:http://HOST"),
        ("endpoint:http://h/p?access=labels", "access"),
        ("endpoint:http://h/p?access=white-box", "expected scores or label"),
        ("endpoint:http://h/p?rate=0", "rate: "),
    ],
)
def test_wrong_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        read_spec(spec)
    assert spec in str(caught.value) and "\n" not in str(caught.value)


def test_attacks_run_against_an_endpoint(service: Service) -> None:
    target, endpoint = connect(service)
    asked = service.images
    how = CmaEs(pool=100, searches=2, generations=10, keep=2, crops=2, truncation=1.0)
    found = run_attack(how, target, FlatPrior(), torch.arange(3), rng=generator(0))
    assert bool((halves(found.images).gather(1, found.labels[:, None]) > 0.7).all())
    assert service.images - asked == endpoint.sent
    # Less than what the attack sends, because clipped latents come again.
    assert found.queries is not None and 100 < endpoint.sent <= found.queries
    label, _ = connect(service, "?access=label")
    with pytest.raises(InputError, match=r"needs scores access, but the target endpoint:.* label"):
        run_attack(how, label, FlatPrior(), torch.arange(3), rng=generator(0))
    repelled = BrepMi(pool=60, searches=2, iterations=3, keep=2)
    made = run_attack(repelled, label, FlatPrior(), torch.arange(3), rng=generator(0))
    assert len(made) == 6


def test_a_broken_service_is_found_at_the_start() -> None:
    with serving(Service(status(503))) as broken, pytest.raises(TargetError, match="status 503"):
        connect(broken, "?pause=0.01")
    assert len(broken.requests) == 2
