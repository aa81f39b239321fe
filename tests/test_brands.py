"""A token that is bound to brands is good for these only."""

import pytest

from tests.conftest import BOUND_TOKEN, GPT, TOKEN, Service, ask
from tests.upstream import Upstream


@pytest.mark.parametrize("brand_id", ["loop", "acme"])
def test_a_bound_token_may_call_for_its_brands(
    brand_id: str, service: Service, provider: Upstream
) -> None:
    response = service.post(ask(brand_id=brand_id), token=BOUND_TOKEN)
    assert response.status_code == 200
    record = service.record_of(response)
    assert (record["caller"], record["brand_id"]) == ("bound", brand_id)
    assert len(provider.received) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("brand_id", ["other", "Loop", "loop ", "loop|acme", "lo", "lóop"])
def test_a_bound_token_is_refused_for_any_other_before_a_provider_is_called(
    brand_id: str, stream: bool, service: Service, provider: Upstream
) -> None:
    response = service.post(ask(brand_id=brand_id, stream=stream), token=BOUND_TOKEN)
    assert response.status_code == 403
    assert sorted(response.json()) == ["error", "message"]
    assert response.json()["error"] == "brand_not_allowed"
    assert "brand_id" in response.json()["message"]
    assert provider.received == []


def test_the_refusal_is_recorded(service: Service, provider: Upstream) -> None:
    response = service.post(ask(brand_id="other", requested_by="Ann"), token=BOUND_TOKEN)
    record = service.record_of(response)
    assert (record["status"], record["code"]) == ("error", "brand_not_allowed")
    assert (record["caller"], record["brand_id"], record["requested_by"]) == (
        "bound",
        "other",
        "Ann",
    )
    assert (record["model"], record["attempts"]) == (GPT, 0)
    assert record["total_tokens"] is None
    assert provider.received == []


def test_the_refusal_names_no_brand(service: Service) -> None:
    response = service.post(ask(brand_id="other-brand"), token=BOUND_TOKEN)
    for brand in ("loop", "acme", "other-brand"):
        assert brand not in response.text


def test_a_token_without_brands_may_call_for_any(service: Service) -> None:
    assert service.post(ask(brand_id="whoever"), token=TOKEN).status_code == 200
