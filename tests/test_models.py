"""`flask models`: whether the vendors still have what calls are sent to."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from providers.http.models import models_command
from tests.conftest import ANTHROPIC_KEY, OPENAI_KEY, pointed_at
from tests.upstream import STALL, Upstream, body, raw, refuse

GPTS = ["gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo"]
CLAUDE_MODEL = {"id": "claude-sonnet-4-6", "type": "model", "lifecycle": "active"}


def day(days: float) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}"


def openai_list(**ends: str) -> list[dict[str, Any]]:
    """All of OpenAI's models in the contract, those named (with _ for -) ending then."""
    of_name = {name.replace("_", "-"): end for name, end in ends.items()}
    return [{"id": name, "object": "model", "shutdown_date": of_name.get(name)} for name in GPTS]


def asked(
    upstream: Upstream, claude: Any = (CLAUDE_MODEL,), gpt: Any = None, **environ: str
) -> Result:
    """What the command says when the vendors list these."""
    # The order in which they are asked does not matter: each has a server of its own.
    with Upstream() as other:
        for server, listed in ((upstream, claude), (other, openai_list() if gpt is None else gpt)):
            reply = listed
            if isinstance(listed, list | tuple):
                reply = body(json.dumps({"data": list(listed), "has_more": False}))
            server.replies.append(reply)
        env = pointed_at(upstream) | {"OPENAI_BASE_URL": f"{other.url}/v1"} | environ
        result = CliRunner().invoke(models_command, env=env)
        if other.received:
            request = other.received[0]
            assert (request.method, request.path) == ("GET", "/v1/models")
            assert request.headers["authorization"] == f"Bearer {OPENAI_KEY}"
    return result


def line_of(result: Result, model: str) -> str:
    (line,) = [line for line in result.output.splitlines() if line.startswith(f"{model}:")]
    return line.partition(": ")[2]


def test_models_that_stay_are_available(upstream: Upstream) -> None:
    result = asked(upstream)
    assert [line.partition(":")[2] for line in result.output.splitlines()] == [" available"] * 5
    assert result.exit_code == 0
    request = upstream.received[0]
    assert (request.method, request.path) == ("GET", "/v1/models?limit=1000")
    assert request.headers["x-api-key"] == ANTHROPIC_KEY
    assert request.body == b""


@pytest.mark.parametrize(("days", "exit_code"), [(29, 1), (31.5, 0), (400, 0)])
def test_an_end_within_thirty_days_is_reason_to_worry(
    days: float, exit_code: int, upstream: Upstream
) -> None:
    result = asked(upstream, gpt=openai_list(gpt_4o=day(days)))
    assert line_of(result, "gpt-4o") == f"available until {day(days)}"
    assert result.exit_code == exit_code


@pytest.mark.parametrize(
    "end",
    [
        {"retires_at": f"{day(-1)}T00:00:00Z"},
        {"lifecycle": {"state": "retired", "retires_at": day(-1)}},
        {"retires_at": (datetime.now(UTC) - timedelta(days=1)).timestamp()},
    ],
    ids=["a moment", "within the lifecycle", "seconds"],
)
def test_a_model_that_has_ended_is_gone(end: dict[str, Any], upstream: Upstream) -> None:
    result = asked(upstream, claude=[CLAUDE_MODEL | end])
    assert line_of(result, "claude-sonnet-4-6") == f"gone since {day(-1)}"
    assert result.exit_code == 1


def test_a_model_that_is_not_listed_or_listed_as_retired_is_gone(upstream: Upstream) -> None:
    retired = [CLAUDE_MODEL | {"lifecycle": "retired"}]
    result = asked(upstream, claude=retired, gpt=openai_list()[:-1])
    assert line_of(result, "gpt-3.5-turbo") == "gone"
    assert line_of(result, "claude-sonnet-4-6") == "gone"
    assert result.exit_code == 1


def test_what_an_alias_points_to_decides(upstream: Upstream) -> None:
    listed = [*openai_list()[:-1], {"id": "gpt-5.6-terra", "shutdown_date": None}]
    aliases = "gpt-3.5-turbo=gpt-5.6-terra"
    result = asked(upstream, gpt=listed, MODEL_ALIASES=aliases)
    assert line_of(result, "gpt-3.5-turbo") == "gone; sent as gpt-5.6-terra: available"
    assert result.exit_code == 0
    gone = asked(upstream, MODEL_ALIASES="gpt-4o=gpt-9")
    assert line_of(gone, "gpt-4o") == "available; sent as gpt-9: gone"
    assert gone.exit_code == 1


def test_a_snapshot_stands_for_its_name(upstream: Upstream) -> None:
    listed = [{"id": "claude-sonnet-4-6-20260115"}, {"id": "claude-sonnet-4-6-mini"}]
    assert line_of(asked(upstream, claude=listed), "claude-sonnet-4-6") == "available"
    result = asked(upstream, claude=listed[1:])
    assert line_of(result, "claude-sonnet-4-6") == "gone"


def test_a_list_of_several_pages_is_read_to_its_end(upstream: Upstream) -> None:
    first = {"data": [{"id": "claude-old"}], "has_more": True, "last_id": "claude-old"}
    upstream.replies.append(body(json.dumps(first)))
    assert line_of(asked(upstream), "claude-sonnet-4-6") == "available"
    paths = [request.path for request in upstream.received]
    assert paths == ["/v1/models?limit=1000", "/v1/models?limit=1000&after_id=claude-old"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refuse(401, f"Bad key {ANTHROPIC_KEY}."), "answered 401"),
        (raw(STALL), "nothing"),
        (body("<html>"), "not JSON"),
        (body('{"data": {}}'), "unknown shape|gone"),
        (body('{"data": [5]}'), "unknown shape"),
        (body('{"data": [{"id": 5}]}'), "unknown shape"),
    ],
    ids=["refused", "silent", "no JSON", "no list", "no models", "no name"],
)
def test_a_vendor_that_cannot_tell_is_reason_to_worry(
    reply: Any, words: str, upstream: Upstream
) -> None:
    result = asked(upstream, claude=reply, READ_TIMEOUT_S="0.3")
    assert any(word in line_of(result, "claude-sonnet-4-6") for word in words.split("|"))
    assert line_of(result, "gpt-4o") == "available"
    assert ANTHROPIC_KEY not in result.output
    assert result.exit_code == 1


def test_without_a_key_nobody_is_asked(upstream: Upstream) -> None:
    result = asked(upstream, ANTHROPIC_API_KEY="")
    assert "no key" in line_of(result, "claude-sonnet-4-6")
    assert upstream.received == []
    assert result.exit_code == 1


def test_offline_nobody_is_asked(upstream: Upstream) -> None:
    result = asked(upstream, OFFLINE="1")
    assert result.output == "OFFLINE=1: no vendor is asked.\n"
    assert result.exit_code == 0
    assert upstream.received == []
