"""The real SDKs as callers, against the real service."""

import asyncio
import functools
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

from tests.conftest import CLAUDE, GPT, Service
from tests.upstream import CUT, Upstream, refuse, say

MODELS = pytest.mark.parametrize("model", [CLAUDE, GPT])
OURS = {"brand_id": "loop", "requested_by": "me"}
HI: list[Any] = [{"role": "user", "content": "Hi"}]


def sdk(service: Service, token: str | None = None, **more: Any) -> openai.OpenAI:
    key = token or service.token
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, **more)


def ask_with(client: Any, model: str, **more: Any) -> Any:
    body = OURS | more.pop("extra_body", {})
    return client.chat.completions.create(model=model, messages=HI, extra_body=body, **more)


@MODELS
def test_openai_python_reads_a_full_answer(
    model: str, service: Service, provider: Upstream
) -> None:
    answer = ask_with(sdk(service), model, temperature=0.5, max_tokens=9)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    limit = "max_tokens" if model == CLAUDE else "max_completion_tokens"
    assert provider.received[0].json[limit] == 9


@MODELS
def test_openai_python_reads_a_stream(model: str, service: Service, provider: Upstream) -> None:
    provider.replies.append(say("Hél", "lo"))
    chunks = list(ask_with(sdk(service), model, stream=True))
    # A plain loop that reads choices[0] of every chunk does not stumble.
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Héllo"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert len([chunk for chunk in chunks if chunk.usage]) == 1


@MODELS
def test_openai_python_gets_the_usage_of_a_stream_where_it_expects_it(
    model: str, service: Service, provider: Upstream
) -> None:
    options: Any = {"include_usage": True}
    chunks = list(ask_with(sdk(service), model, stream=True, stream_options=options))
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2
    assert len(provider.received) == 1


@MODELS
def test_openai_python_reads_answers_and_streams_asynchronously(
    model: str, service: Service, provider: Upstream
) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.token) as there:
            full = await ask_with(there, model)
            stream = await ask_with(there, model, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return full.choices[0].message.content, "".join(texts)

    assert asyncio.run(both()) == ("Hello there", "Hello there")
    assert len(provider.received) == 2


def test_openai_python_collects_a_stream_with_its_own_helper(
    service: Service, provider: Upstream
) -> None:
    with sdk(service).chat.completions.stream(
        model=GPT, messages=HI, extra_body=OURS, stream_options={"include_usage": True}
    ) as stream:
        stream.until_done()
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == "Hello there"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert len(provider.received) == 1


@pytest.mark.parametrize(
    ("token", "more", "status", "kind", "code"),
    [
        ("wrong", {}, 401, openai.AuthenticationError, "unauthorized"),
        (
            "bound-token",
            {"extra_body": {"brand_id": "other"}},
            403,
            openai.PermissionDeniedError,
            "brand_not_allowed",
        ),
        (None, {"extra_body": {"brand_id": ""}}, 400, openai.BadRequestError, "invalid_input"),
        (None, {"temperature": 3}, 400, openai.BadRequestError, "invalid_input"),
        (
            None,
            {"extra_headers": {"Content-Encoding": "gzip"}},
            415,
            openai.APIStatusError,
            "unsupported_encoding",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_python_raises_the_class_of_our_status(
    stream: bool,
    token: str | None,
    more: dict[str, Any],
    status: int,
    kind: type[openai.APIStatusError],
    code: str,
    service: Service,
) -> None:
    with pytest.raises(kind) as caught:
        ask_with(sdk(service, token), GPT, stream=stream, **more)
    assert caught.value.status_code == status
    assert caught.value.body == code
    assert caught.value.response.json()["message"]


@MODELS
def test_openai_python_raises_for_a_provider_s_failure_and_does_not_ask_again_in_vain(
    model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(400, "max_tokens is too large"))
    patient = openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.token, max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        ask_with(patient, model)
    assert caught.value.body == "provider_rejected_request"
    assert "max_tokens is too large" in caught.value.response.json()["message"]
    assert len(provider.received) == 1


@MODELS
def test_openai_python_raises_where_a_stream_breaks_off(
    model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(say("Hel", CUT))
    texts: list[str] = []
    stream = ask_with(sdk(service), model, stream=True)
    with pytest.raises(openai.APIError) as caught:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(texts) == "Hel"
    assert "cut its answer off" in str(caught.value)
    assert caught.value.code == "provider_unavailable"


def test_openai_python_calls_by_headers_alone(service: Service) -> None:
    named = {"X-Brand-Id": "loop", "X-Requested-By": "jane"}
    there = sdk(service, default_headers=named)
    answer = there.chat.completions.with_raw_response.create(model=GPT, messages=HI)
    (record,) = service.records(request_id=answer.headers["X-Request-Id"])
    assert (record["brand_id"], record["requested_by"]) == ("loop", "jane")


def test_openai_python_lists_no_path_that_is_not_there(service: Service) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk(service).embeddings.create(model="x", input="y")


@functools.cache
def langchain(service: Service, model: str) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{service.url}/v1",
        api_key=service.token,  # type: ignore[arg-type]
        max_retries=0,
        extra_body=OURS,
        stream_usage=True,
    )


@MODELS
def test_langchain_reads_a_full_answer(model: str, service: Service, provider: Upstream) -> None:
    answer = langchain(service, model).invoke("Hi")
    assert answer.content == "Hello there"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 4
    assert len(provider.received) == 1


@MODELS
def test_langchain_reads_a_stream_and_counts_its_usage_once(
    model: str, service: Service, provider: Upstream
) -> None:
    pieces = list(langchain(service, model).stream("Hi"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == "Hello there"
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 2
    assert whole.usage_metadata["input_tokens"] == (15 if model == CLAUDE else 10)
    assert len(provider.received) == 1


def test_langchain_without_stream_usage_counts_it_once_as_well(
    service: Service, provider: Upstream
) -> None:
    model = langchain(service, GPT).model_copy(update={"stream_usage": False})
    counts = [piece.usage_metadata for piece in model.stream("Hi") if piece.usage_metadata]
    assert [count["output_tokens"] for count in counts] == [2]
    assert len(provider.received) == 1


def test_langchain_raises_for_errors(service: Service, provider: Upstream) -> None:
    provider.replies.append(refuse(401))
    with pytest.raises(openai.InternalServerError):
        langchain(service, GPT).invoke("Hi")
    provider.replies.append(say("Hel", CUT))
    with pytest.raises(openai.APIError):
        list(langchain(service, GPT).stream("Hi"))
