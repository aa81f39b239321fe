"""The usage record: one line for each call, and never a word of what was said."""

import json
import os
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
import responses

import schemas
from chat import answers
from core import records
from providers.offline import Offline
from tests.conftest import (
    ANTHROPIC_KEY,
    BOUND_TOKEN,
    CLAUDE,
    GPT,
    OPENAI_KEY,
    TOKEN,
    Service,
    ask,
)
from tests.inprocess import OPENAI_URL, busy, client, offline, post
from tests.upstream import CUT, STALL, Part, Upstream, body, events, refuse, say, sse

FIELDS = {
    "event",
    "time",
    "request_id",
    "caller",
    "token",
    "trace_id",
    "brand_id",
    "requested_by",
    "model",
    "answered_model",
    "provider",
    "stream",
    "status",
    "code",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "unpriced",
    "adjusted",
    "attempts",
    "upstream_status",
    "cause",
    "duration_ms",
    "first_token_ms",
    "provider_request_id",
}
REFUSED_FIELDS = {"event", "time", "request_id", "code", "status", "caller"}
CANARY = "the-canary-that-nobody-may-write-down"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every line that the service in this process writes from now on."""
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(records._output, "write", lambda line: lines.append(json.loads(line)))
    return lines


# Its fields.


@pytest.mark.parametrize("model", [CLAUDE, GPT])
@pytest.mark.parametrize("stream", [False, True])
def test_a_record_has_every_field(
    stream: bool, model: str, service: Service, provider: Upstream
) -> None:
    name = f"fields-{model}-{stream}"
    service.post(ask(model, stream=stream), headers={"X-Request-Id": name})
    (record,) = service.records(request_id=name)
    assert set(record) == FIELDS
    prompt = 15 if model == CLAUDE else 10
    completion = 2 if stream else 4
    expected = {
        "event": "usage",
        "request_id": name,
        "caller": "team",
        "brand_id": "loop",
        "requested_by": "me",
        "model": model,
        "answered_model": CLAUDE if model == CLAUDE else "gpt-4o-2024-08-06",
        "provider": "anthropic" if model == CLAUDE else "openai",
        "stream": stream,
        "status": "ok",
        "code": None,
        "finish_reason": "stop",
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "attempts": 1,
        "provider_request_id": "req_011C" if model == CLAUDE else "req_oai",
    }
    assert {key: record[key] for key in expected} == expected
    assert 0 < record["duration_ms"] < 10_000
    if stream:
        assert 0 < record["first_token_ms"] <= record["duration_ms"]
    else:
        assert record["first_token_ms"] is None
    age = datetime.now().astimezone() - datetime.fromisoformat(record["time"])
    assert timedelta() <= age < timedelta(minutes=1)
    assert len(provider.received) == 1


def test_the_caller_is_the_name_of_the_token(written: list[dict[str, Any]]) -> None:
    post(offline(), ask(brand_id="acme"), {"Authorization": f"Bearer {BOUND_TOKEN}"})
    assert [line["caller"] for line in written] == ["bound"]


def test_the_request_id_of_the_answer_is_the_one_in_the_record(
    written: list[dict[str, Any]],
) -> None:
    response = post(offline(), ask())
    assert [line["request_id"] for line in written] == [response.headers["X-Request-Id"]]


# One a call, however it ends.


@pytest.mark.parametrize(
    "request_body", [b"", b"{", {}, ask(temperature=3), ask(messages=[])], ids=repr
)
def test_a_request_that_is_refused_leaves_one_line_without_a_word_of_it(
    request_body: Any, written: list[dict[str, Any]]
) -> None:
    code = post(offline(), request_body).get_json()["error"]
    assert post(offline(), ask(), {"Authorization": "Bearer x"}).status_code == 401
    assert offline().get("/healthz").status_code == 200
    fields = [(line["event"], line["code"], line["status"], line["caller"]) for line in written]
    assert fields == [("refused", code, 400, "team"), ("refused", "unauthorized", 401, None)]
    assert all(set(line) == REFUSED_FIELDS for line in written)


def test_a_valid_call_that_is_refused_leaves_a_record(written: list[dict[str, Any]]) -> None:
    post(offline(), ask(brand_id="other"), {"Authorization": f"Bearer {BOUND_TOKEN}"})
    last_said = [{"role": "assistant", "content": "x"}]
    post(client(), ask(CLAUDE, messages=last_said))
    post(client(ANTHROPIC_API_KEY="", OPENAI_API_KEY=""), ask())
    post(busy(), ask())
    assert [(line["status"], line["code"]) for line in written] == [
        ("error", "brand_not_allowed"),
        ("error", "invalid_input"),
        ("error", "provider_not_configured"),
        ("error", "overloaded"),
    ]
    for line in written:
        assert set(line) == FIELDS
        assert line["total_tokens"] is None
        assert line["attempts"] == 0


@pytest.mark.parametrize(
    ("stream", "parts", "status", "code"),
    [
        (False, [CUT], "error", "provider_bad_response"),
        (True, ["Hel", CUT], "error", "provider_unavailable"),
        (True, [CUT], "error", "provider_unavailable"),
        (True, ["Hel", b"data: {\n\n"], "error", "provider_bad_response"),
    ],
)
def test_a_call_that_fails_leaves_one_record_with_its_cause(
    stream: bool,
    parts: list[Part | str],
    status: str,
    code: str,
    service: Service,
    provider: Upstream,
) -> None:
    provider.replies.append(say(*parts))
    name = f"fails-{stream}-{len(parts)}-{code}-{parts[-1]!r:.4}".replace(" ", "")
    name = "".join(c for c in name if c.isalnum() or c in "-_")
    service.post(ask(stream=stream), headers={"X-Request-Id": name})
    (record,) = service.records(request_id=name)
    assert (record["status"], record["code"]) == (status, code)
    assert record["finish_reason"] is None
    assert record["total_tokens"] is None
    assert record["attempts"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_is_a_client_disconnect(
    stream: bool, service: Service, provider: Upstream
) -> None:
    name = f"leaves-{stream}"
    provider.replies.append(say("Hel", STALL))
    sock = service.send(ask(stream=stream, requested_by=name))
    (request,) = provider.wait_for(1)
    if stream:
        received = b""
        while b"Hel" not in received:
            received += sock.recv(65536)
    sock.close()
    assert request.gone.wait(10)

    def found() -> list[dict[str, Any]]:
        return [record for record in service.records(0) if record["requested_by"] == name]

    service.until(found)
    (record,) = found()
    assert (record["status"], record["code"]) == ("client_disconnect", None)
    assert record["total_tokens"] is None


def test_a_provider_that_was_asked_twice_is_told_so(service: Service, provider: Upstream) -> None:
    provider.replies.append(refuse(500, retry_after_ms="1"))
    service.post(ask(), headers={"X-Request-Id": "twice"})
    (record,) = service.records(request_id="twice")
    assert record["attempts"] == 2


def test_the_record_is_written_before_the_end_mark_goes_out(
    written: list[dict[str, Any]],
) -> None:
    response = offline().post(
        "/v1/chat/completions",
        json=ask(stream=True),
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    for piece in response.iter_encoded():
        assert len(written) == (b"[DONE]" in piece)
    assert [line["status"] for line in written] == ["ok"]
    response.close()
    assert len(written) == 1


def test_a_caller_who_leaves_right_after_the_end_mark_is_no_disconnect(
    service: Service, provider: Upstream
) -> None:
    wait = threading.Event()
    chunks = [*say("Hello").parts]
    provider.replies.append(say(*chunks, wait))
    sock = service.send(ask(stream=True, requested_by="in-a-hurry"))
    wait.set()
    received = b""
    while b"[DONE]" not in received:
        received += sock.recv(65536)
    sock.close()

    def found() -> list[dict[str, Any]]:
        return [r for r in service.records(0) if r["requested_by"] == "in-a-hurry"]

    service.until(found)
    assert [record["status"] for record in found()] == ["ok"]
    assert len(provider.received) == 1


def test_a_stream_that_is_never_begun_leaves_a_record_and_gives_its_slot_back(
    written: list[dict[str, Any]],
) -> None:
    there = client(OFFLINE="1", THREADS="5")
    for _ in range(10):  # more than there are slots
        headers = {"Authorization": f"Bearer {TOKEN}"}
        there.post("/v1/chat/completions", json=ask(stream=True), headers=headers).close()
    assert [line["status"] for line in written] == ["client_disconnect"] * 10
    assert post(there, ask()).status_code == 200


# No forged lines.


@pytest.mark.parametrize(
    "forged",
    [
        'me"}\n{"event": "usage", "caller": "forged"}',
        '\r\n{"event": "usage"}',
        "\u2028\u0085{}",
        "\x1b[31m",
        "\u0000",
        '", "caller": "forged',
    ],
)
def test_no_text_of_the_caller_can_forge_a_line_or_a_field(
    forged: str, written: list[dict[str, Any]]
) -> None:
    post(offline(), ask(brand_id=forged, requested_by=forged), {"X-Request-Id": "{}"})
    (line,) = written
    assert line["brand_id"] == line["requested_by"] == forged
    assert line["caller"] == "team"
    assert line["request_id"].isalnum()


def test_a_real_log_has_one_line_a_record_whatever_the_caller_sends(
    service: Service, provider: Upstream
) -> None:
    forged = 'forger"}\n{"event": "usage", "requested_by": "forged"}\u2028'
    before = service.log.count("\n")
    service.post(ask(brand_id=forged, requested_by=forged))
    service.until(lambda: service.log.count("\n") > before)
    new = service.log.split("\n")[before:-1]
    assert len(new) == 1
    assert new[0].isascii()
    assert json.loads(new[0])["requested_by"] == forged
    assert len(provider.received) == 1


def test_a_giant_name_makes_a_line_that_a_pipe_takes_in_one_piece(
    written: list[dict[str, Any]],
) -> None:
    post(offline(), ask(brand_id="漢" * 100_000, requested_by="\U0001f600" * 100_000))
    name = "\U0001f600" * 1000
    record = records.Record(
        "openai",
        ask(GPT, brand_id=name, requested_by=name, stream=True),
        request_id="r" * 128,
        caller=records.short(name),
        token="0" * 8,
        trace_id="0" * 32,
    )
    record.fields["answered_model"] = record.fields["finish_reason"] = records.short(name)
    record.fields["adjusted"] = {"temperature": None, "max_tokens": "max_completion_tokens"}
    record.fields["provider_request_id"] = "p" * 128
    record.write("error", "provider_rejected_request")
    assert len(written) == 2
    for line in written:
        assert len(json.dumps(line)) < 4096


# No word of what was said.


def failing_calls(service: Service, provider: Upstream) -> list[str]:
    """What the service answers to calls full of canaries that succeed and fail in every way."""
    error = sse({"type": "error", "error": {"type": "x", "message": CANARY}})
    replies = [
        say(CANARY),
        say(CANARY, CUT),
        say(CANARY, error),
        body(CANARY),
        body(json.dumps({"id": CANARY, "content": CANARY})),
        events(CANARY.encode()),
        events(f"data: {CANARY}\n\n".encode()),
        refuse(400, CANARY),
        refuse(401, f"{CANARY} sk-{CANARY}"),
        refuse(404, CANARY),
        refuse(429, CANARY, retry_after=CANARY),
        refuse(529, CANARY, type_=CANARY, x_should_retry="false"),
        body(CANARY, 503, x_should_retry="false"),
    ]
    answers = []
    for model in (CLAUDE, GPT):
        for stream in (False, True):
            provider.replies.extend(replies)
            for _ in replies:
                said = ask(model, CANARY, stream=stream, tools=CANARY)
                answers.append(service.post(said).text)
    for refused in (
        service.post(CANARY.encode()),
        service.post(ask(text=CANARY, temperature=CANARY)),
        service.post(ask(messages=[{"role": CANARY, "content": CANARY}])),
        service.post(ask(messages=[{"role": "assistant", "content": CANARY}], model=CLAUDE)),
        service.post(ask(text=CANARY, brand_id="x"), token=BOUND_TOKEN),
        service.post(ask(text=CANARY), token=CANARY),
        service.post(ask(text=CANARY), headers={"Content-Encoding": CANARY}),
    ):
        assert CANARY not in refused.text
        answers.append(refused.text)
    return answers


def test_no_prompt_answer_token_or_key_is_ever_logged(service: Service, provider: Upstream) -> None:
    before = len(service.log)
    count = len(service.records(0))
    answers = failing_calls(service, provider)
    service.records(count + 4 * 13 + 2)
    log = service.log[before:]
    for secret in (CANARY, TOKEN, BOUND_TOKEN, ANTHROPIC_KEY, OPENAI_KEY):
        assert secret not in log
    assert '"event": "crash"' not in log
    assert "Traceback" not in log
    for secret in (ANTHROPIC_KEY, OPENAI_KEY, BOUND_TOKEN):
        assert not any(secret in answer for answer in answers)
    assert not any(f"sk-{CANARY}" in answer for answer in answers)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (schemas, "parse"),
        (schemas, "check_request"),
        (schemas, "unnamed_properties"),
        (answers, "completion"),
        (Offline, "prepare"),
        (Offline, "_answer"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_nobody_expected_is_told_by_type_and_place_only(
    stream: bool,
    place: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    written: list[dict[str, Any]],
) -> None:
    def explode(*given: object, **_more: object) -> None:
        local = CANARY, given
        raise RuntimeError(CANARY, local)

    there = offline()
    monkeypatch.setattr(place, name, explode)
    monkeypatch.setattr(there.application, "testing", False)
    response = post(there, ask(text=CANARY, stream=stream))
    heard = capfd.readouterr()
    # Nothing but the text streamed so far may say what was said.
    told = "" if response.status_code == 200 else response.text + str(response.headers)
    everything = told + heard.out + heard.err + str(written)
    assert CANARY not in everything
    assert "Traceback" not in everything
    assert "internal_error" in response.text
    crashes = [line for line in written if line["event"] == "crash"]
    assert [line["type"] for line in crashes] == ["RuntimeError"]
    assert "explode" in crashes[0]["place"]


def test_a_crash_after_validation_still_leaves_its_record(
    monkeypatch: pytest.MonkeyPatch, written: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(Offline, "complete", lambda *_: 1 / 0)
    post(offline(), ask())
    usage = [line for line in written if line["event"] == "usage"]
    assert [(line["status"], line["code"]) for line in usage] == [("error", "internal_error")]


def test_a_call_does_not_fail_when_nobody_takes_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, pipe = os.pipe()
    os.close(nobody)
    monkeypatch.setattr(records, "_output", records.Output(pipe))
    assert post(offline(), ask()).status_code == 200
    os.close(pipe)


def test_what_a_provider_says_reaches_the_caller_but_not_the_log(
    wire: responses.RequestsMock, written: list[dict[str, Any]]
) -> None:
    words = f"{CANARY} with {OPENAI_KEY} and sk-other"
    wire.post(OPENAI_URL, status=400, json={"error": {"message": words, "type": "x"}})
    message = post(client(), ask()).get_json()["message"]
    assert CANARY in message
    assert OPENAI_KEY not in message
    assert "sk-other" not in message
    assert CANARY not in str(written)
