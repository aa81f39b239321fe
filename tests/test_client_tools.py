"""Clients that are built on others: a command line, frameworks, an SSE reader, the AI SDK."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import SSEError, connect_sse
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.conftest import GPT, TOKEN, Service, ask
from tests.upstream import CUT, Upstream, refuse, say

HEADERS = {"X-Brand-Id": "loop", "X-Requested-By": "jane"}
OURS = {"brand_id": "loop", "requested_by": "jane"}


# llm: headers are all that its configuration knows


@pytest.fixture
def llm(service: Service, tmp_path: Path) -> Any:
    """Runs the command `llm` with the service as its model."""
    model = {
        "model_id": "gateway",
        "model_name": GPT,
        "api_base": f"{service.url}/v1",
        "api_key_name": "gateway",
        "headers": HEADERS | {"X-Requested-By": "llm"},
    }
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"gateway": TOKEN}))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("llm"), "--no-log", "-m", "gateway", *arguments],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_llm_calls_by_headers_alone(llm: Any, service: Service, provider: Upstream) -> None:
    provider.replies += [say("Héllo"), say("Hél", "lo")]
    for arguments in (["--no-stream", "Hi"], ["Hi"]):
        assert llm(*arguments).stdout == "Héllo\n"
    records = service.records(2, requested_by="llm")
    assert [record["brand_id"] for record in records] == ["loop", "loop"]


def test_llm_shows_what_broke_a_stream(llm: Any, provider: Upstream) -> None:
    provider.replies.append(say("Hel", CUT))
    run = llm("Hi")
    assert (run.returncode, run.stdout) == (1, "Hel")
    assert "cut its answer off" in run.stderr


# pydantic-ai


def agent(service: Service) -> Agent[None, str]:
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key=TOKEN, max_retries=0)
    return Agent(OpenAIChatModel(GPT, provider=OpenAIProvider(openai_client=client)))


@pytest.mark.parametrize("settings", [{"extra_body": OURS}, {"extra_headers": HEADERS}])
def test_pydantic_ai_reads_answers(settings: Any, service: Service, provider: Upstream) -> None:
    assert agent(service).run_sync("Hi", model_settings=settings).output == "Hello there"
    assert len(provider.received) == 1


def test_pydantic_ai_raises_with_our_code(service: Service, provider: Upstream) -> None:
    provider.replies.append(refuse(400))
    with pytest.raises(ModelHTTPError, match="provider_rejected_request"):
        agent(service).run_sync("Hi", model_settings={"extra_body": OURS})


def test_pydantic_ai_raises_with_our_message_in_a_stream(
    service: Service, provider: Upstream
) -> None:
    async def stream() -> list[str]:
        asked = agent(service).run_stream("Hi", model_settings={"extra_body": OURS})
        async with asked as answer:
            return [text async for text in answer.stream_text(delta=True)]

    provider.replies.append(say("Hel", "lo"))
    assert "".join(asyncio.run(stream())) == "Hello"
    provider.replies.append(say("Hel", CUT))
    with pytest.raises(ModelAPIError, match="cut its answer off"):
        asyncio.run(stream())


# httpx-sse


def test_httpx_sse_reads_the_events(service: Service, provider: Upstream) -> None:
    def events() -> list[str]:
        url, bearer = f"{service.url}/v1/chat/completions", {"Authorization": f"Bearer {TOKEN}"}
        body = ask(stream=True)
        with (
            httpx.Client() as client,
            connect_sse(client, "POST", url, headers=bearer, json=body) as source,
        ):
            return [event.data for event in source.iter_sse()]

    whole = events()
    assert whole[-1] == "[DONE]"
    assert all(json.loads(data)["choices"] for data in whole[:-1])
    provider.replies.append(say("Hel", CUT))
    assert json.loads(events()[-1])["error"]["code"] == "provider_unavailable"
    provider.replies.append(refuse(400))
    with pytest.raises(SSEError):  # an answer that is no stream; its status and body tell why
        events()


# The AI SDK, in the two packages that speak chat completions

SCRIPT = """
import { generateText, streamText } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const { baseURL, apiKey, headers, body } = JSON.parse(process.env.HOW);
const model = {
  "openai": createOpenAI({ baseURL, apiKey, headers }).chat("gpt-4o"),
  "openai-compatible": createOpenAICompatible({ name: "gateway", baseURL, apiKey })("gpt-4o"),
}[process.env.PACKAGE];
const how = { model, prompt: "Hi", maxRetries: 0, providerOptions: { gateway: body } };

const { text } = await generateText(how);
const parts = [];
for (let round = 0; round < 2; round++) {
  for await (const part of streamText({ ...how, onError() {} }).fullStream) {
    if (part.type === "text-delta") parts.push(part.text);
    if (part.type === "error") parts.push(part.error.message ?? part.error);
    if (part.type === "finish") parts.push(part.finishReason);
  }
}
const failure = await generateText(how).catch((error) => JSON.parse(error.responseBody));
console.log(JSON.stringify({ text, parts, failure }));
"""


@pytest.mark.parametrize("package", ["openai", "openai-compatible"])
def test_the_ai_sdk_reads_answers_and_failures(
    package: str, service: Service, provider: Upstream, node_modules: Path
) -> None:
    how = {"baseURL": f"{service.url}/v1", "apiKey": TOKEN, "headers": HEADERS, "body": OURS}
    provider.replies += [say("Full"), say("Hel", "lo"), say("One", CUT), refuse(400)]
    run = subprocess.run(
        ["node", "--input-type=module", "--eval", SCRIPT],
        cwd=node_modules,
        env={"PATH": os.environ["PATH"], "HOW": json.dumps(how), "PACKAGE": package},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["text"] == "Full"
    *parts, broken, finish = said["parts"]
    assert parts == ["Hel", "lo", "stop", "One"]
    assert broken.startswith("OpenAI cut its answer off")
    assert finish == "error"
    assert said["failure"]["error"] == "provider_rejected_request"
