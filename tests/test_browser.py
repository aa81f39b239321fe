"""The page in a real browser: headless Chromium against a real service."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.conftest import CLAUDE, GPT, TOKEN, Service
from tests.upstream import CUT, STALL, Upstream, refuse, say

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"
)

NONE = "\N{EN DASH}"
ENDED = ("done", "failed", "stopped")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Page:
    """The reference page of one service, and what a person does and sees on it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, service: Service) -> None:
        self.driver.get(service.url)
        self.fill("token", TOKEN)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        """The text of the element with this id, as it is in the document."""
        found: str = self.driver.execute_script(
            "return document.getElementById(arguments[0]).textContent.trim()", name
        )
        return found

    def fill(self, name: str, text: str) -> None:
        field = self.find(f"#{name}")
        field.clear()
        field.send_keys(text)

    def ask(self, text: str, model: str = GPT) -> None:
        """Fill in the first message and send it."""
        Select(self.find("#model")).select_by_visible_text(model)
        message = self.find("#message-list .content")
        message.clear()
        message.send_keys(text)
        self.find("#send").click()

    def until(self, *states: str) -> str:
        """The state of the answer once it is one of these."""

        def reached(_driver: Any) -> str:
            state = self.find("#result").get_attribute("data-state") or ""
            return state if state in states else ""

        return WebDriverWait(self.driver, 10, poll_frequency=0.02).until(reached)

    def answer_with(self, *parts: str) -> None:
        """Let the next answers be streams of these pieces, whatever is asked."""
        self.driver.execute_script(
            """
            const parts = arguments[0].map((part) => new TextEncoder().encode(part));
            const pull = (to) => parts.length ? to.enqueue(parts.shift()) : to.close();
            const headers = { "Content-Type": "text/event-stream" };
            window.fetch = async () => new Response(new ReadableStream({ pull }), { headers });
            """,
            parts,
        )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, service: Service) -> Page:
    """The page of the service whose upstream is `provider`, with a token typed in."""
    page = Page(driver)
    page.open(service)
    return page


def test_a_streamed_answer_is_shown_while_it_comes(page: Page, provider: Upstream) -> None:
    rest = threading.Event()
    provider.replies.append(say("One", rest, " two"))
    page.ask("Count")
    page.until("streaming")
    assert page.text("answer-text") == "One"
    assert page.find("#answer").get_attribute("aria-busy") == "true"
    rest.set()
    assert page.until(*ENDED) == "done"
    assert page.text("answer-text") == "One two"
    assert page.find("#answer").get_attribute("aria-busy") == "false"


def test_the_figures_of_an_answer_are_those_of_its_record(page: Page, service: Service) -> None:
    page.ask("Hi")
    assert page.until(*ENDED) == "done"
    record = next(r for r in service.records() if r["request_id"] == page.text("request-id"))
    assert page.text("tokens") == "10 + 2 = 12"
    assert page.text("finish-reason") == record["finish_reason"] == "stop"
    assert page.text("answered-model") == record["answered_model"]
    first, total = (float(page.text(name).split()[0]) for name in ("first-token", "total-time"))
    assert 0 < first <= total
    assert record["stream"] is True


def test_a_full_answer_is_shown_too(page: Page) -> None:
    page.find("#stream").click()
    page.ask("Hi")
    assert page.until(*ENDED) == "done"
    assert page.text("answer-text") == "Hello there"
    assert page.text("tokens") == "10 + 4 = 14"
    assert page.text("first-token") == NONE


def test_stop_ends_the_call_down_to_the_provider(page: Page, provider: Upstream) -> None:
    provider.replies.append(say("One", STALL))
    page.ask("Count")
    page.until("streaming")
    page.find("#stop").click()
    assert page.until(*ENDED) == "stopped"
    assert page.text("answer-text") == "One"
    assert "incomplete" in page.text("status")
    assert provider.received[-1].gone.wait(10)
    assert page.find("#send").is_enabled()


def test_a_wrong_token_is_told_as_it_is(page: Page) -> None:
    page.fill("token", "wrong")
    page.ask("Hi")
    assert page.until(*ENDED) == "failed"
    assert page.text("failure-code") == "unauthorized"
    assert page.text("failure-status").upper() == "HTTP 401 UNAUTHORIZED"
    assert "Bearer TOKEN" in page.text("failure-message")
    assert len(page.text("request-id")) == 32


def test_a_field_that_breaks_the_schema_is_sent_and_told(page: Page) -> None:
    page.fill("temperature", "hot")
    page.ask("Hi")
    assert page.until(*ENDED) == "failed"
    assert page.text("failure-code") == "invalid_input"
    assert "temperature" in page.text("failure-message")
    assert page.find("#failure-code a").get_attribute("href").endswith("#error-invalid_input")


def test_a_failure_of_the_provider_is_told_as_it_is(page: Page, provider: Upstream) -> None:
    provider.replies.append(refuse(400, "The context is too long."))
    page.ask("Hi")
    assert page.until(*ENDED) == "failed"
    assert page.text("failure-code") == "provider_rejected_request"
    assert page.text("failure-status").upper() == "HTTP 500 INTERNAL SERVER ERROR"
    assert "The context is too long" in page.text("failure-message")


def test_a_stream_that_fails_midway_is_a_failed_answer(page: Page, provider: Upstream) -> None:
    provider.replies.append(say("One", CUT))
    page.ask("Count")
    assert page.until(*ENDED) == "failed"
    assert page.text("answer-text") == "One"
    assert page.text("failure-code").startswith("provider_")
    assert page.text("failure-status") == "in the stream"
    assert page.text("first-token") != NONE
    assert page.text("finish-reason") == NONE


def test_a_body_that_ends_without_done_is_a_failed_answer(page: Page) -> None:
    page.answer_with(
        'data: {"choices": [{"delta": {"content": "One"}, "finish_reason": "stop"}]}\n\n'
    )
    page.ask("Count")
    assert page.until(*ENDED) == "failed"
    assert page.text("answer-text") == "One"
    assert page.text("failure-code") == "incomplete_stream"


def test_an_answer_that_never_comes_is_a_failure(page: Page) -> None:
    page.driver.execute_script("window.fetch = () => Promise.reject(new TypeError('no network'))")
    page.ask("Hi")
    assert page.until(*ENDED) == "failed"
    assert page.text("failure-message") == "no network"


def test_events_are_read_the_same_wherever_their_bytes_are_cut(page: Page) -> None:
    nasty = (
        "\ufeffdata:a\u2028é\r\ndata:  b\r\n\r\n"
        ": ping\n\ndata: 😀\r\revent: x\nid\ndata\n\ndata: cut"
    )
    results = page.driver.execute_async_script(
        """
        const [text, done] = arguments;
        import("/static/reference.js").then(({ EventReader }) => {
          const bytes = new TextEncoder().encode(text);
          const results = new Set();
          for (let first = 0; first <= bytes.length; first++) {
            for (let second = first; second <= bytes.length; second++) {
              const reader = new EventReader();
              const cuts = [0, first, second, bytes.length];
              const reads = [0, 1, 2].map((i) => bytes.slice(cuts[i], cuts[i + 1]));
              const events = reads.flatMap((read) => reader.read(read));
              results.add(JSON.stringify(events));
            }
          }
          done([...results]);
        });
        """,
        nasty,
    )
    assert [json.loads(result) for result in results] == [["a\u2028é\n b", "😀", ""]]


def test_a_long_answer_comes_whole_and_its_end_is_in_view(page: Page, provider: Upstream) -> None:
    words = [f"word{number} " for number in range(5000)]
    provider.replies.append(say(*words))
    page.ask("Tell me everything")
    assert page.until(*ENDED) == "done"
    assert page.text("answer-text") == "".join(words).strip()
    below = (
        "const box = document.getElementById('answer');"
        "return box.scrollHeight - box.scrollTop - box.clientHeight"
    )
    assert page.driver.execute_script(below) < 2


def test_the_curl_command_shown_sends_the_same_request(
    page: Page, provider: Upstream, service: Service
) -> None:
    page.fill("max_tokens", "7")
    page.ask("""It's "quoted", $HOME `id` \\ and ü""")
    assert page.until(*ENDED) == "done"
    command = page.text("curl")
    assert TOKEN not in command
    run = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": "/usr/bin:/bin", "ACCESS_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.stdout.endswith("data: [DONE]\n\n"), run.stderr
    typed, pasted = (request.json for request in provider.received[-2:])
    assert typed == pasted
    assert typed["messages"] == [
        {"role": "user", "content": """It's "quoted", $HOME `id` \\ and ü"""}
    ]
    assert service.url in command


def test_the_python_and_javascript_shown_send_the_same_request(
    page: Page, provider: Upstream, node_modules: Path
) -> None:
    page.find("#stream").click()
    page.fill("temperature", "0.25")
    page.ask("""It's "quoted",\n${x} \\ and ü 😀""")
    assert page.until(*ENDED) == "done"
    commands = {
        "python": ([sys.executable, "-c"], None),
        "javascript": (["node", "--input-type=module", "--eval"], node_modules),
    }
    for language, (command, folder) in commands.items():
        run = subprocess.run(
            [*command, page.text(language)],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "ACCESS_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert run.stdout == "Hello there\n", run.stderr
    typed, *pasted = (request.json for request in provider.received)
    assert pasted == [typed, typed]


def test_the_code_of_a_stream_streams(page: Page) -> None:
    assert "stream=True" in page.text("python")
    assert "for chunk in stream:" in page.text("python")
    assert "stream: true" in page.text("javascript")
    assert "for await (const chunk of stream)" in page.text("javascript")


def test_a_link_that_carries_a_token_fills_its_field_and_keeps_it_out_of_the_address(
    page: Page, service: Service
) -> None:
    page.driver.get("about:blank")
    for address in (f"{service.url}/#token=a%2Bb", f"{service.url}/#token=c%ZZ"):
        page.driver.get(address)
        WebDriverWait(page.driver, 5, poll_frequency=0.02).until(
            lambda driver: driver.current_url == f"{service.url}/"
        )
    assert page.find("#token").get_attribute("value") == "c%ZZ"
    page.driver.get("about:blank")
    page.driver.get(f"{service.url}/#token=a%2Bb")
    assert page.find("#token").get_attribute("value") == "a+b"
    assert page.driver.current_url == f"{service.url}/"
    page.driver.refresh()
    assert page.find("#token").get_attribute("value") == ""


def test_a_missing_token_puts_the_cursor_into_its_field(page: Page, provider: Upstream) -> None:
    page.find("#token").clear()
    page.find("#send").click()
    assert page.driver.switch_to.active_element == page.find("#token")
    assert "token" in page.text("status")
    assert provider.received == []


@pytest.mark.parametrize("stream", [True, False])
def test_the_raw_response_is_shown_with_its_headers(page: Page, stream: bool) -> None:
    if not stream:
        page.find("#stream").click()
    page.ask("Hi")
    assert page.until(*ENDED) == "done"
    head, _, body = page.text("raw-text").partition("\n\n")
    assert head.startswith("HTTP 200")
    assert f"x-request-id: {page.text('request-id')}" in head
    if stream:
        assert body.endswith("data: [DONE]")
    else:
        assert json.loads(body)["choices"][0]["message"]["content"] == "Hello there"


def test_the_raw_response_of_a_failure_is_shown_too(page: Page) -> None:
    page.fill("temperature", "3")
    page.ask("Hi")
    assert page.until(*ENDED) == "failed"
    head, _, body = page.text("raw-text").partition("\n\n")
    assert head.startswith("HTTP 400")
    assert json.loads(body) == {"error": "invalid_input", "message": page.text("failure-message")}


def test_no_backtick_is_shown_outside_of_code(page: Page) -> None:
    page.fill("token", "wrong")
    page.ask("Hi")
    assert page.until(*ENDED) == "failed"
    shown = page.driver.execute_script(
        """
        for (const code of document.querySelectorAll("pre")) code.remove();
        return document.body.innerText
        """
    )
    assert "Bearer TOKEN" in shown
    assert "`" not in shown


def test_a_message_can_be_sent_without_scrolling_on_a_small_laptop(
    page: Page, service: Service
) -> None:
    metrics = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open(service)
        page.driver.execute_script("scrollTo(0, 0)")
        send, code, answer = (page.find(name).rect for name in ("#send", "#curl", "#answer"))
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert send["y"] + send["height"] < 720
    assert code["x"] > send["x"] + 300  # beside the fields
    assert answer["y"] < 600


def test_the_curl_command_can_be_copied(page: Page) -> None:
    origin = page.driver.current_url
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": origin},
    )
    page.find("[data-copy='curl']").click()
    WebDriverWait(page.driver, 5, poll_frequency=0.02).until(lambda _: page.text("copied"))
    copied = page.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    )
    assert copied == page.text("curl")


def test_what_was_changed_of_the_request_is_told(page: Page) -> None:
    page.fill("temperature", "1.5")
    page.ask("Hi", CLAUDE)
    assert page.until(*ENDED) == "done"
    assert page.text("remarks") == "Adjusted: temperature=1"


def test_messages_are_added_and_removed_by_keyboard(page: Page, provider: Upstream) -> None:
    page.find("#add-message").send_keys(Keys.ENTER)
    page.driver.switch_to.active_element.send_keys("Second")
    Select(page.find("#message-list li:last-child .role")).select_by_visible_text("assistant")
    page.find("#add-message").send_keys(Keys.ENTER)
    page.driver.switch_to.active_element.send_keys("Third")
    page.find("#message-list li:first-child .remove").send_keys(Keys.ENTER)
    assert page.driver.switch_to.active_element.accessible_name == "Content of message 1"
    page.driver.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    assert page.until(*ENDED) == "done"
    assert provider.received[-1].json["messages"] == [
        {"role": "assistant", "content": "Second"},
        {"role": "user", "content": "Third"},
    ]


def test_the_keyboard_keeps_its_place_between_send_and_stop(page: Page, provider: Upstream) -> None:
    rest = threading.Event()
    provider.replies.append(say("One", rest))
    page.find("#send").send_keys(Keys.ENTER)
    page.until("streaming")
    assert page.driver.switch_to.active_element == page.find("#stop")
    rest.set()
    page.until("done")
    assert page.driver.switch_to.active_element == page.find("#send")


def test_a_screen_reader_hears_the_state_and_not_every_word(page: Page) -> None:
    live = "#answer, #answer *, #result"
    assert not page.driver.find_elements(
        By.CSS_SELECTOR, ":is(" + live + "):is([aria-live],output)"
    )
    page.ask("Hi")
    page.until("done")
    assert page.text("status") == "The answer is complete"
    assert page.find("#status").aria_role == "status"


def test_every_control_has_a_name(page: Page) -> None:
    for control in page.driver.find_elements(By.CSS_SELECTOR, "input, select, textarea, button"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")


def test_the_token_is_kept_nowhere_but_in_its_field(page: Page) -> None:
    page.ask("Hi")
    page.until("done")
    kept = page.driver.execute_script(
        "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
    )
    assert kept[:3] == [0, 0, ""]
    page.driver.refresh()
    assert page.find("#token").get_attribute("value") == ""


def test_nothing_leaves_the_origin_and_the_policy_blocks_nothing(
    page: Page, service: Service
) -> None:
    for name in ("browser", "performance"):
        page.driver.get_log(name)
    page.open(service)
    page.ask("Hi")
    assert page.until(*ENDED) == "done"
    assert page.driver.get_log("browser") == []
    events = [
        json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")
    ]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert f"{service.url}/v1/chat/completions" in asked
    assert all(url.startswith((service.url + "/", "data:image/svg+xml")) for url in asked), asked


def test_nothing_moves_while_an_answer_comes(page: Page, provider: Upstream) -> None:
    provider.replies.append(say(*["some words "] * 200))
    before = [page.find(selector).rect for selector in (".figures", ".request", "footer")]
    page.ask("Say hello in five words.")
    page.until("done")
    after = [page.find(selector).rect for selector in (".figures", ".request", "footer")]
    assert after == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_the_page_in_one_direction_only(
    page: Page, provider: Upstream, service: Service, scheme: str
) -> None:
    driver = page.driver
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        page.open(service)
        provider.replies.append(say("unbroken" * 100))
        page.ask("Hi")
        assert page.until(*ENDED) == "done"
        for summary in driver.find_elements(By.TAG_NAME, "summary"):
            summary.send_keys(Keys.ENTER)
        widths = driver.execute_script(
            "const box = document.getElementById('answer');"
            "return [document.documentElement.scrollWidth, box.scrollWidth - box.clientWidth]"
        )
        lines = driver.execute_script(
            "return document.querySelector('.url code').getClientRects().length"
        )
        background = page.find("body").value_of_css_property("background-color")
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert widths == [metrics["width"], 0]
    assert lines == 1  # of the base URL
    assert ("255, 255, 255" in background) is (scheme == "light")


def test_the_examples_are_shown_one_language_at_a_time(page: Page) -> None:
    page.driver.execute_script("arguments[0].click()", page.find("[value='python']"))
    shown = [
        figure.get_attribute("data-language")
        for figure in page.driver.find_elements(By.CSS_SELECTOR, "[data-language]")
        if figure.is_displayed()
    ]
    assert shown == ["python"] * 4  # the request's own, and three of the section
