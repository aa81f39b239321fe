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
from dataclasses import dataclass

WORD = " word"  # starts the text of every chunk: what the load generator counts
FULL_WORDS = 50

ORDER = re.compile(rb"mock ([a-z0-9_= ]+);")
STREAM = re.compile(rb'"stream":\s*true')
WITH_USAGE = re.compile(rb'"include_usage":\s*true')
CONTENT_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
PROVIDERS = {b"/v1/chat/completions": "openai", b"/v1/messages": "anthropic"}


@dataclass(frozen=True)
class Answer:
    """A rendered answer: the writes, and the seconds before the first and between two of them."""

    writes: tuple[bytes, ...]
    delay: float = 0.0
    interval: float = 0.0
    closes: bool = False


@functools.lru_cache(maxsize=1024)
def render(provider: str, stream: bool, usage: bool, order: bytes) -> Answer:
    """The answer that an order asks for."""
    wanted = dict(pair.split("=") for pair in order.decode().split())
    status, delay = int(wanted.get("status", 200)), int(wanted.get("delay_ms", 0)) / 1000
    if status != 200:
        error = {"type": "api_error", "message": "made to fail", "code": None}
        return Answer((_full_response(status, {"type": "error", "error": error}),), delay)
    if not stream:
        return Answer((_full_response(200, _message(provider)),), delay)
    chunks, interval = int(wanted.get("chunks", 50)), int(wanted.get("interval_ms", 0)) / 1000
    events = _anthropic_events(chunks) if provider == "anthropic" else _openai_events(chunks, usage)
    starting, texts, ending = ([_framed(event) for event in part] for part in events)
    ending.append(b"0\r\n\r\n")
    is_cut = bool(int(wanted.get("cut", 0)))
    if is_cut:
        texts, ending = texts[: chunks // 2], []
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"request-id: req_mock\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    first, last = b"".join([head, *starting, texts[0]]), b"".join(ending)
    writes = (first, *texts[1:-1], texts[-1] + last) if interval else (first, *texts[1:], last)
    return Answer(writes if interval else (b"".join(writes),), delay, interval, is_cut)


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _full_response(status: int, document: dict[str, object]) -> bytes:
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
        "content-type: application/json\r\n"
        f"request-id: req_mock\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


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


Events = tuple[list[bytes], list[bytes], list[bytes]]  # before the text, the text's, after it


def _anthropic_events(chunks: int) -> Events:
    def event(kind: str, **data: object) -> bytes:
        return f"event: {kind}\ndata: {_compact({'type': kind, **data})}\n\n".encode()

    usage = {"input_tokens": 10, "cache_read_input_tokens": 0, "output_tokens": 1}
    message = {**_message("anthropic"), "content": [], "stop_reason": None, "usage": usage}
    start = [
        event("message_start", message=message),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
    ]
    deltas = [{"type": "text_delta", "text": word} for word in _words(chunks)]
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    end = [
        event("content_block_stop", index=0),
        event("message_delta", delta=stop, usage={"output_tokens": chunks}),
        event("message_stop"),
    ]
    return start, [event("content_block_delta", index=0, delta=delta) for delta in deltas], end


def _openai_events(chunks: int, with_usage: bool) -> Events:
    message = _message("openai")
    head = {"id": message["id"], "object": "chat.completion.chunk"}
    base = {**head, "created": message["created"], "model": message["model"]}
    tail: dict[str, object] = {"usage": None} if with_usage else {}

    def event(choices: list[object], **more: object) -> bytes:
        return f"data: {_compact({**base, 'choices': choices, **tail, **more})}\n\n".encode()

    def choice(finish_reason: str | None = None, **delta: object) -> list[object]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    start = [event(choice(role="assistant", content="", refusal=None))]
    end = [event(choice("stop")), b"data: [DONE]\n\n"]
    if with_usage:
        end.insert(1, event([], usage=_openai_usage(chunks)))
    return start, [event(choice(content=word)) for word in _words(chunks)], end


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
        if path not in PROVIDERS:
            self.transport.write(_full_response(404, {"error": {"message": "no such path"}}))
            return
        order, usage = ORDER.search(body), WITH_USAGE.search(body) is not None
        stream = STREAM.search(body) is not None
        answer = render(PROVIDERS[path], stream, usage, order.group(1) if order else b"")
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
        elif answer.closes:
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
