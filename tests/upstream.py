"""A provider to test against: it speaks both wires on a real port and misbehaves by script.

In a test: `with Upstream() as upstream`, then `upstream.replies.append(stream("a", CUT))`.
By hand: `python -m tests.upstream --port 9000`, and the service with ANTHROPIC_BASE_URL and
OPENAI_BASE_URL pointed there; a last message such as `script: ["Hel", 2.5, "lo", "CUT"]` says
what to stream (text), for how long to wait (a number) and how to end (CUT, RESET, STALL), and
`script: 529` which error to answer. `script: "azure"` asks for one of the forms that other
servers were seen to send; `--forms` lists them.
"""

import argparse
import itertools
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self


class Step(Enum):
    """What a reply may do besides sending bytes."""

    CUT = "close the connection, without the end of the body"
    RESET = "reset the connection"
    STALL = "say nothing more, until the other side closes"
    DROP = "close the connection after the reply, though nothing announced it"


CUT, RESET, STALL, DROP = Step.CUT, Step.RESET, Step.STALL, Step.DROP
# bytes are sent as they are; a number is a wait in seconds, an Event a wait for it.
Part = bytes | float | threading.Event | Step
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass
class Received:
    """One request as it came, and `gone`, set when its connection was closed by the service."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_anthropic(self) -> bool:
        return self.path.endswith("/messages")


@dataclass
class Reply:
    """What to answer: texts become the provider's own stream or full answer; parts go out raw."""

    parts: Iterable[Part | str]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_raw: bool = False
    is_chunked: bool = True


def say(*parts: Part | str, **headers: str) -> Reply:
    """An answer with these texts, full or streamed as it is asked for, doing the steps between."""
    return Reply(list(parts), headers=headers)


def events(*parts: Part, chunked: bool = True, content_type: str = "text/event-stream") -> Reply:
    """A 200 whose body is exactly these bytes, in these pieces."""
    return Reply(list(parts), 200, {"content-type": content_type}, True, chunked)


def body(text: str | bytes, status: int = 200, **headers: str) -> Reply:
    """A plain answer with this body."""
    data = text.encode() if isinstance(text, str) else text
    named = {"content-type": "application/json", "content-length": str(len(data))}
    return Reply([data], status, named | _names(headers), True, False)


def refuse(
    status: int, message: str = "No.", type_: str = "", code: str = "", **headers: str
) -> Reply:
    """An error in the form that both providers' parsers read."""
    error = {"type": type_ or ERROR_TYPES.get(status, "api_error"), "message": message}
    document = {"type": "error", "error": error | ({"code": code} if code else {})}
    return body(json.dumps(document), status, **headers)


def raw(*parts: Part) -> Reply:
    """Exactly these bytes, status line and all."""
    return Reply(list(parts), 0, {}, True, False)


def endless(head: bytes, *pieces: Part) -> Reply:
    """Exactly `head`, and then the pieces again and again; for one request."""
    return Reply(itertools.chain([head], itertools.cycle(pieces)), 0, {}, True, False)


# The head of an answer whose body is what in_chunks() makes.
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def in_chunks(*parts: Part) -> bytes:
    """What of these is bytes, each in an HTTP chunk of its own, and the end of the body."""
    pieces = [part for part in parts if isinstance(part, bytes)] + [b""]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def _names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def _told(
    texts: Iterable[Part | str], event: Callable[[str], bytes]
) -> Generator[Part, None, int | None]:
    """The texts as events, with the steps between; their number, or None if a step ended it."""
    count = 0
    for text in texts:
        if isinstance(text, str):
            count += 1
            yield event(text)
        else:
            yield text
            if isinstance(text, Step) and text is not DROP:
                return None
    return count


def anthropic_events(
    texts: Iterable[Part | str], model: str = "claude-sonnet-4-6"
) -> Iterator[Part]:
    """Anthropic's stream around these texts, up to message_stop unless a step ends it."""
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
    message = {"id": "msg_01A", "type": "message", "role": "assistant", "model": model}
    yield sse(
        {"type": "message_start", "message": {**message, "content": [], "usage": usage}},
        "message_start",
    )
    block = {"type": "text", "text": ""}
    yield sse(
        {"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start"
    )
    yield sse({"type": "ping"}, "ping")

    def told(text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return sse(
            {"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta"
        )

    count = yield from _told(texts, told)
    if count is None:
        return
    yield sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
    yield sse(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": count},
        },
        "message_delta",
    )
    yield sse({"type": "message_stop"}, "message_stop")


def openai_chunk(choices: list[Any], model: str = "gpt-4o-2024-08-06", usage: Any = None) -> bytes:
    chunk = {"id": "chatcmpl-A", "object": "chat.completion.chunk", "created": 1790000000}
    return sse({**chunk, "model": model, "choices": choices, "usage": usage})


def openai_events(texts: Iterable[Part | str], model: str = "gpt-4o-2024-08-06") -> Iterator[Part]:
    """OpenAI's stream around these texts, up to [DONE] unless a step ends it."""
    first = {"role": "assistant", "content": "", "refusal": None}
    yield openai_chunk([{"index": 0, "delta": first, "finish_reason": None}], model)

    def told(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        return openai_chunk([choice], model)

    count = yield from _told(texts, told)
    if count is None:
        return
    yield openai_chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], model)
    usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
    yield openai_chunk([], model, usage)
    yield sse("[DONE]")


def anthropic_message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_01A",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 4},
    }


def openai_completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {
        "id": "chatcmpl-A",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def wire_of(model: str, *parts: Part | str) -> list[Part]:
    """What the model's provider streams around these texts, event by event."""
    return list((anthropic_events if model.startswith("claude") else openai_events)(parts))


def joined(parts: Iterable[Part]) -> bytes:
    return b"".join(part for part in parts if isinstance(part, bytes))


class Upstream:
    """The server: one thread a connection, the next of `replies` for each request, else "Hello"."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.replies: deque[Reply] = deque()
        self.default = say("Hello", " there")
        self.received: list[Received] = []
        self.connections = 0  # accepted so far
        self.drops_used = False  # whether a connection's second request only gets it closed
        self.arrived = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._sockets: set[socket.socket] = set()
        self._stopped = threading.Event()
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._tls = tls
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopped.set()
        self._listener.close()
        for sock in list(self._sockets):
            sock.close()

    def wait_for(self, count: int, timeout_s: float = 10) -> list[Received]:
        """The requests so far, once there are at least `count`."""
        with self.arrived:
            if not self.arrived.wait_for(lambda: len(self.received) >= count, timeout_s):
                raise TimeoutError(f"{len(self.received)} of {count} requests came")
            return list(self.received)

    def close_idle(self) -> None:
        """Close all connections, as a provider does with idle ones."""
        for sock in list(self._sockets):
            sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            # Head and body leave in two writes; Nagle would hold the second back for 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock = self._tls.wrap_socket(sock, server_side=True) if self._tls else sock
            self._sockets.add(sock)
            with sock, sock.makefile("rb") as stream:
                for count in itertools.count(1):
                    request = _read_request(stream)
                    if request is None or (count > 1 and self.drops_used):
                        return
                    with self.arrived:
                        reply = self.replies.popleft() if self.replies else self.default
                        self.received.append(request)
                        self.arrived.notify_all()
                    try:
                        if not self._answer(sock, request, _scripted(request) or reply):
                            return
                    except OSError:
                        request.gone.set()
                        raise
                    finally:
                        if _is_gone(sock):
                            request.gone.set()
        except OSError:
            pass
        finally:
            self._sockets.discard(sock)

    def _answer(self, sock: socket.socket, request: Received, reply: Reply) -> bool:
        """Send the reply; whether the connection can go on."""
        for part in _bytes_of(request, reply):
            match part:
                case bytes():
                    sock.sendall(part)
                case threading.Event():
                    part.wait(30)
                case Step.STALL:
                    while sock.recv(65536):
                        pass
                    return False
                case Step.RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return False
                case Step():
                    return False
                case _:
                    self._stopped.wait(part)
        return True


def _is_gone(sock: socket.socket) -> bool:
    if isinstance(sock, ssl.SSLSocket):  # it cannot look ahead
        return False
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _read_request(stream: Any) -> Received | None:
    line = stream.readline()
    if not line:
        return None
    method, path, _version = line.decode().split()
    headers = {}
    while (header := stream.readline().strip()) != b"":
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return Received(method, path, headers, stream.read(int(headers.get("content-length", 0))))


def _scripted(request: Received) -> Reply | None:
    """The reply that the last message asks for, if it holds a script."""
    if request.method == "GET":
        return None
    last = request.json["messages"][-1]["content"]
    if not isinstance(last, str) or not last.startswith("script:"):
        return None
    script = json.loads(last.removeprefix("script:"))
    if isinstance(script, int):
        return refuse(script)
    if isinstance(script, str):
        from tests.forms import FORMS  # which are made of what is here

        return FORMS[script].reply(request) if script in FORMS else body("no such form", 400)
    return say(*(Step[part] if part in Step.__members__ else part for part in script))


def _bytes_of(request: Received, reply: Reply) -> Iterator[Part]:
    """The reply on the wire: a head, then the body in its framing."""
    if reply.status == 0:
        yield from reply.parts  # type: ignore[misc]
        return
    if reply.is_raw:
        parts: Iterable[Any] = reply.parts
    elif request.json.get("stream"):
        wire = anthropic_events if request.is_anthropic else openai_events
        parts = wire(reply.parts)
    else:
        yield from _full(request, reply)
        return
    headers = {"content-type": "text/event-stream; charset=utf-8"} | reply.headers
    chunked = reply.is_chunked and "content-length" not in headers
    if chunked:
        headers["transfer-encoding"] = "chunked"
    elif "content-length" not in headers:
        headers["connection"] = "close"
    yield _head(request, reply.status, headers)
    ended = False
    for part in parts:
        ended = isinstance(part, Step)
        yield b"%x\r\n%b\r\n" % (len(part), part) if chunked and isinstance(part, bytes) else part
    if chunked and not ended:
        yield b"0\r\n\r\n"
    elif "content-length" not in headers:
        yield CUT


def _full(request: Received, reply: Reply) -> Iterator[Part]:
    text = "".join(part for part in reply.parts if isinstance(part, str))
    document = anthropic_message(text) if request.is_anthropic else openai_completion(text)
    data = json.dumps(document).encode()
    for part in reply.parts:
        if isinstance(part, float | int | threading.Event):
            yield part
    steps = [part for part in reply.parts if isinstance(part, Step)]
    if STALL in steps:
        yield STALL
        return
    headers = {"content-type": "application/json", "content-length": str(len(data))}
    yield _head(request, 200, headers | _names(reply.headers))
    if CUT in steps or RESET in steps:
        yield data[: len(data) // 2]
    else:
        yield data
    yield from steps


def _head(request: Received, status: int, headers: dict[str, str]) -> bytes:
    own = {"request-id": "req_011C"} if request.is_anthropic else {"x-request-id": "req_oai"}
    lines = [f"{name}: {value}" for name, value in (own | headers).items()]
    return "\r\n".join([f"HTTP/1.1 {status} Mock", *lines, "", ""]).encode()


def main() -> None:
    from tests.forms import FORMS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--forms", action="store_true", help="list what can be asked for by name")
    options = parser.parse_args()
    if options.forms:
        for name, form in FORMS.items():
            print(f"{name:18} {form.about} ({form.wires}; {form.modes})")  # noqa: T201
        return
    with Upstream(options.port) as upstream:
        print(f"ANTHROPIC_BASE_URL={upstream.url} OPENAI_BASE_URL={upstream.url}/v1")  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    # (The forms know this module by its name.)
    from tests.upstream import main as main_by_name

    main_by_name()
