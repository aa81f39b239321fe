"""Every form of the upstream server's, asked for by its script: what a call that meets it gets."""

import json
from collections.abc import Iterator

import pytest

from tests.conftest import CLAUDE, GPT, Service, ask, chunks, serve, text_of
from tests.forms import FORMS
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    yield from serve(tmp_path_factory, READ_TIMEOUT_S=1)


CASES = [
    pytest.param(name, model, mode == "stream", id=f"{name}-{wire}-{mode}")
    for name, form in FORMS.items()
    for wire, model in (("openai", GPT), ("anthropic", CLAUDE))
    for mode in ("stream", "full")
    if wire in form.wires and mode in form.modes
]


@pytest.mark.parametrize(("name", "model", "stream"), CASES)
def test_a_form_ends_as_its_table_says(
    name: str, model: str, stream: bool, service: Service
) -> None:
    form = FORMS[name]
    request = ask(model, f'script: "{name}"', stream=stream, temperature=0.3, max_tokens=50)
    response = service.post(request)
    if form.code is None:
        assert response.status_code == 200, response.text
        if stream:
            assert response.text.endswith("data: [DONE]\n\n")
            assert text_of(response.text.split("\n")) == "Hello there"
        else:
            assert response.json()["choices"][0]["message"]["content"] == "Hello there"
    elif response.status_code == 200:
        error = chunks(response.text.split("\n"))[-1]["error"]
        assert error["code"] == form.code
        assert "data: [DONE]" not in response.text
    else:
        assert response.status_code == 500
        assert response.json()["error"] == form.code
    assert service.record_of(response)["code"] == form.code


@pytest.mark.parametrize("name", ["comments", "reasoning", "empty-deltas", "thinking"])
def test_a_sign_of_life_is_a_comment(name: str, service: Service) -> None:
    model = CLAUDE if name == "thinking" else GPT
    response = service.post(ask(model, f'script: "{name}"', stream=True))
    assert ": ping\n\n" in response.text.split("Hello")[0]
    assert "hm" not in response.text


def test_a_plain_answer_is_given_where_a_form_is_not_meant(
    service: Service, provider: Upstream
) -> None:
    assert service.post(ask(GPT, 'script: "glued"')).status_code == 200
    assert json.loads(provider.received[0].body)["messages"][0]["content"] == 'script: "glued"'
