"""A mock of both providers, fast enough never to be what is measured.

    python -m bench.upstream --port 9000

answers `POST /v1/messages` as Anthropic does and `POST /v1/chat/completions` as OpenAI does,
in full or as a stream. What it shall do stands in the prompt, because that is the one part of
a request that every gateway passes on:

    mock delay_ms=300;                  wait before a full answer, or before a stream's first byte
    mock chunks=50 interval_ms=20;      that many content chunks, one each 20 ms (0: flat out)
    mock status=529;                    answer with this status and the provider's error body
    mock cut=1;                         close the connection half-way through the stream

Every answer is rendered once and then only written.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import re
from dataclasses import dataclass, replace

WORD = " word"  # starts the text of every chunk: what the load generator counts
FULL_WORDS = 50

ORDER = re.compile(rb"mock ([a-z0-9_= ]+);")
STREAM = re.compile(rb'"stream":\s*true')
WITH_USAGE = re.compile(rb'"include_usage":\s*true')
CONTENT_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What one request is to be answered with."""

    provider: str = "openai"
    stream: bool = False
    usage: bool = False
    delay_ms: int = 0
    chunks: int = 50
    interval_ms: int = 0
    status: int = 200
    cut: int = 0


@dataclass(frozen=True)
class Answer:
    """A rendered answer: the writes, and the seconds before the first and between two of them."""

    delay: float
    interval: float
    writes: tuple[bytes, ...]
    close: bool = False


def plan(provider: str, body: bytes) -> Plan:
    """The plan that a request's prompt asks for."""
    order = ORDER.search(body)
    return _plan(
        provider,
        STREAM.search(body) is not None,
        WITH_USAGE.search(body) is not None,
        order.group(1) if order else b"",
    )


@functools.lru_cache(maxsize=1024)
def _plan(provider: str, stream: bool, usage: bool, order: bytes) -> Plan:
    settings = dict(pair.split("=") for pair in order.decode().split())
    numbers = {name: int(value) for name, value in settings.items()}
    return replace(Plan(provider, stream, usage), **numbers)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1024)
def render(wanted: Plan) -> Answer:
    """The bytes of a plan's answer."""
    delay, interval = wanted.delay_ms / 1000, wanted.interval_ms / 1000
    if wanted.status != 200:
        return Answer(delay, 0, (_full_response(wanted.status, _error(wanted)),))
    if not wanted.stream:
        return Answer(delay, 0, (_full_response(200, _message(wanted.provider)),))
    start, chunks, end = _events(wanted)
    paced = interval > 0
    if wanted.cut:
        half = [*start, *chunks[: wanted.chunks // 2]]
        return Answer(delay, interval, _writes(half, [], paced, len(start)), close=True)
    frames = [*start, *chunks]
    return Answer(delay, interval, _writes(frames, end, paced, len(start)))


def _writes(frames: list[bytes], end: list[bytes], paced: bool, starters: int) -> tuple[bytes, ...]:
    """The stream's writes: one a chunk when it is paced, all in one when it is flat out."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"request-id: req_mock\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    framed = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames]
    last = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in end)
    if end:
        last += b"0\r\n\r\n"
    if not paced:
        return (head + b"".join(framed) + last,)
    opening = head + b"".join(framed[: starters + 1])
    writes = [opening, *framed[starters + 1 :]]
    return (*writes[:-1], writes[-1] + last)


def _full_response(status: int, document: dict[str, object]) -> bytes:
    body = json.dumps(document).encode()
    reason = "OK" if status == 200 else "Error"
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
        f"request-id: req_mock\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _error(wanted: Plan) -> dict[str, object]:
    if wanted.provider == "anthropic":
        error = {"type": "api_error", "message": "made to fail"}
        return {"type": "error", "error": error, "request_id": "req_mock"}
    return {"error": {"message": "made to fail", "type": "server_error", "code": None}}


def _message(provider: str) -> dict[str, object]:
    text = "".join(_words(FULL_WORDS))
    if provider == "anthropic":
        return {
            "id": "msg_01A",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-6",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": FULL_WORDS, "service_tier": "standard"},
        }
    answer = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": answer, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-A",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [choice],
        "usage": _openai_usage(FULL_WORDS),
        "service_tier": "default",
        "system_fingerprint": "fp_x",
    }


def _words(count: int) -> list[str]:
    """Words that differ: a gateway may take a repeated chunk for a model gone astray."""
    return [f"{WORD}{number}" for number in range(count)]


def _openai_usage(words: int) -> dict[str, int]:
    return {"prompt_tokens": 10, "completion_tokens": words, "total_tokens": 10 + words}


def _events(wanted: Plan) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """A stream's events: those before the text, the text's, those after it."""
    if wanted.provider == "anthropic":
        return _anthropic_events(wanted)
    return _openai_events(wanted)


def _anthropic_events(wanted: Plan) -> tuple[list[bytes], list[bytes], list[bytes]]:
    message: dict[str, object] = {
        **_message("anthropic"),
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 0, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    start = [
        _named_event({"type": "message_start", "message": message}),
        _named_event({"type": "content_block_start", "index": 0, "content_block": block}),
        _named_event({"type": "ping"}),
    ]
    deltas = [{"type": "text_delta", "text": word} for word in _words(wanted.chunks)]
    chunks = [
        _named_event({"type": "content_block_delta", "index": 0, "delta": delta})
        for delta in deltas
    ]
    usage = {"output_tokens": wanted.chunks}
    end = [
        _named_event({"type": "content_block_stop", "index": 0}),
        _named_event({"type": "message_delta", "delta": stop, "usage": usage}),
        _named_event({"type": "message_stop"}),
    ]
    return start, chunks, end


def _named_event(data: dict[str, object]) -> bytes:
    return f"event: {data['type']}\ndata: {_compact(data)}\n\n".encode()


def _openai_events(wanted: Plan) -> tuple[list[bytes], list[bytes], list[bytes]]:
    base = {
        "id": "chatcmpl-A",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": "gpt-4o-2024-08-06",
    }
    tail: dict[str, object] = {"usage": None} if wanted.usage else {}

    def event(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**base, "choices": [choice], **tail})

    start = [event({"role": "assistant", "content": "", "refusal": None})]
    end = [event({}, "stop")]
    if wanted.usage:
        end.append(_event({**base, "choices": [], "usage": _openai_usage(wanted.chunks)}))
    end.append(b"data: [DONE]\n\n")
    return start, [event({"content": word}) for word in _words(wanted.chunks)], end


def _event(data: dict[str, object]) -> bytes:
    return f"data: {_compact(data)}\n\n".encode()


def _compact(data: dict[str, object]) -> str:
    return json.dumps(data, separators=(",", ":"))


class Provider(asyncio.Protocol):
    """One kept-alive connection of a gateway."""

    def __init__(self) -> None:
        self.received = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = CONTENT_LENGTH.search(self.received, 0, head_end)
        body_start = head_end + 4
        body_end = body_start + (int(length.group(1)) if length else 0)
        if len(self.received) < body_end:
            return
        path = self.received[: self.received.find(b"\r\n")].split(b" ")[1]
        body = self.received[body_start:body_end]
        self.received = self.received[body_end:]
        self.answer(path, body)

    def answer(self, path: bytes, body: bytes) -> None:
        if path == b"/v1/chat/completions":
            answer = render(plan("openai", body))
        elif path == b"/v1/messages":
            answer = render(plan("anthropic", body))
        else:
            self.transport.write(_full_response(404, {"error": {"message": "no such path"}}))
            return
        self.start = self.loop.time() + answer.delay
        if answer.delay:
            self.timer = self.loop.call_at(self.start, self.write, answer, 0)
        else:
            self.write(answer, 0)

    def write(self, answer: Answer, number: int) -> None:
        """Send write `number` and, when the answer is paced, set the clock for the next."""
        self.transport.write(answer.writes[number])
        number += 1
        if number < len(answer.writes):
            due = self.start + number * answer.interval
            self.timer = self.loop.call_at(due, self.write, answer, number)
        elif answer.close:
            self.transport.close()


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A mock of Anthropic and OpenAI.")
    parser.add_argument("--port", type=int, required=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
