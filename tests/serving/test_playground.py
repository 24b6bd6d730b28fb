"""The page at / in a real browser: what it shows is what the API says, and nothing it is given becomes HTML.

The browser is Debian's `chromium`, driven by playwright. Where either is missing these tests are skipped.
"""

import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

SETTINGS = {"prompt": "The naïve cat", "temperature": "0.5", "top_p": "1", "top_k": "", "seed": "3", "max_tokens": "60"}
LOST = "The connection to the server was lost. Is it still running?"
SECRET = "a-secret-of-the-tests"

browser_test = pytest.mark.slow  # it takes a server, a browser and a second
pytestmark = pytest.mark.timeout(120)


def page_text() -> str:
    return (resources.files("transformerlm.serving") / "playground.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_loads_nothing() -> None:
    html = page_text()
    assert re.findall(r"https?://[^\"\s]*", html) == ["http://www.w3.org/2000/svg"]  # the name of SVG's elements
    assert (html.count("<script>"), html.count("<script"), html.count("<style>"), html.count("<style")) == (1, 1, 1, 1)
    assert not re.search(r"<(img|link|iframe|object|embed|base|audio|video|source)\b|@import|url\(", html)


def test_the_page_makes_no_html_of_text() -> None:
    html = page_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|Function\(", html)
    assert not re.search(r"<[^>]*\s(on\w+|style)\s*=", html.partition("<script>")[0])


def test_the_page_keeps_nothing() -> None:
    assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie|caches\.", page_text())


def wait_for(ask: Callable[[], Any], seconds: float = 20) -> Any:
    """Return what `ask` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return answer


def complete(address: str, settings: dict[str, str] = SETTINGS) -> Any:
    """Return the choice that the API gives for the settings of the page."""
    numbers = {name: json.loads(value) for name, value in settings.items() if name != "prompt" and value != ""}
    body = {"prompt": settings["prompt"], "echo": True, "logprobs": 10, "sampling_probs": True, **numbers}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()
    return answer["choices"][0] if "choices" in answer else answer["error"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: uv sync --group browser")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """The page in a window of its own, and what went wrong in it."""

    address: str
    page: Any
    problems: list[str] = field(default_factory=list)

    def open(self, settings: dict[str, str] = SETTINGS) -> Any:
        """Go to the page with these settings in its address."""
        self.page.goto("about:blank")  # or else only the address' last part would change
        self.page.goto(f"{self.address}/#{urlencode(settings)}")
        return self.page

    def write(self, settings: dict[str, str] = SETTINGS) -> Any:
        """Let the page write until it ends by itself."""
        self.open(settings).click("#write")
        self.page.wait_for_selector("#story:not(.writing)")
        return self.page

    def expect_refusals(self) -> None:
        """Forget what the browser itself says on its console when a server refuses a request; it must have."""
        assert self.problems
        assert all("Failed to load resource" in problem for problem in self.problems)
        self.problems.clear()


@pytest.fixture
def visit_of(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens windows. A request to another origin, an error on the console or a dialog in one fails the test."""
    visits: list[Visit] = []

    def start(address: str, **options: Any) -> Visit:
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 1000}} | options))
        context.set_default_timeout(30_000)
        visit = Visit(address, context.new_page())
        context.route(lambda url: not url.startswith(address), lambda route: route.abort())
        context.on("request", lambda request: request.url.startswith((address, "about:")) or note(request.url))
        context.on("console", lambda message: message.type in ("error", "warning") and note(message.text))
        context.on("weberror", lambda error: note(str(error.error)))
        context.on("dialog", lambda dialog: (note("a dialog"), dialog.dismiss()))
        note = visit.problems.append
        visits.append(visit)
        return visit

    yield start
    problems = [problem for visit in visits for problem in visit.problems]
    for visit in visits:
        visit.page.context.close()
    assert problems == []


@pytest.fixture
def visit(visit_of: Callable[..., Visit], process: Any) -> Visit:
    return visit_of(process.address)


def percent(logprob: float) -> str:
    value = 100 * math.exp(logprob)
    return "< 0.01 %" if value < 0.01 else f"{value:.{2 if value < 1 else 1}f} %"


def visible(name: str) -> str:
    if name.startswith("bytes:"):
        return name.removeprefix("bytes:").replace("\\x", " ").strip() + " (bytes)"
    for sign, shown in zip(" \n\r\t", "␣↵␍⇥", strict=True):
        name = name.replace(sign, shown)
    return re.sub(r"[\x00-\x1f\x7f]", lambda sign: f"\\u{{{ord(sign[0]):x}}}", name)


def focused(page: Any, script: str = "element => element.id") -> Any:
    return page.locator("*:focus").evaluate(script)


@browser_test
@pytest.mark.parametrize("prompt", ["The naïve cat 你好", "", "\ufeff<|endoftext|> a\n\n\tb"])
def test_the_story_is_that_of_the_api(visit: Visit, prompt: str) -> None:
    settings = SETTINGS | {"prompt": prompt, "temperature": "1.2", "top_p": "0.9", "top_k": "200"}
    expected = complete(visit.address, settings)
    page = visit.write(settings)
    assert page.text_content("#story") == expected["text"]
    assert expected["text"].startswith(prompt)
    for parts in ("#story .token", "#bars rect"):
        assert page.locator(parts).count() == len(expected["logprobs"]["tokens"])
    assert page.text_content("#model") == "model: random-stories, context: 2,048 tokens"
    number, ends = page.locator("#story .token:not(.prompt)").count(), {"stop": "ended by the model"}
    end = ends.get(expected["finish_reason"], "as many as you asked for")
    assert re.fullmatch(rf"{number} tokens · [\d,]+ tokens/s · {end}", page.text_content("#status"))
    assert page.text_content("#announcement") == "Ended: " + page.text_content("#status")


@browser_test
def test_a_text_that_the_model_ends(visit: Visit) -> None:
    attempts = (SETTINGS | {"temperature": "1", "max_tokens": "500", "seed": str(seed)} for seed in range(50))
    settings, expected = next((s, e) for s in attempts if (e := complete(visit.address, s))["finish_reason"] == "stop")
    page = visit.write(settings)
    assert page.text_content("#story") == expected["text"]
    assert "ended by the model" in page.text_content("#status")
    assert page.locator("#story .token").last.get_attribute("aria-label") == "<|endoftext|>"


@browser_test
@pytest.mark.parametrize("how", ["click", "Escape", "another", "leave"])
def test_stopping_frees_the_slot(visit: Visit, process: Any, how: str) -> None:
    page = visit.open(SETTINGS | {"temperature": "0", "max_tokens": "2000"})
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".token >> nth=30")
    assert process.metric("transformerlm_running") == 1
    if how == "another":
        page.fill("#max_tokens", "5")
        page.keyboard.press("Control+Enter")
    elif how == "leave":
        page.goto("about:blank")
    else:
        page.click("#stop") if how == "click" else page.keyboard.press(how)
    wait_for(lambda: process.metric("transformerlm_running") == 0)
    if how == "another":
        page.wait_for_selector("#story:not(.writing)")
        expected = complete(visit.address, SETTINGS | {"temperature": "0", "max_tokens": "5"})
        assert page.text_content("#story") == expected["text"]
    elif how != "leave":
        page.wait_for_selector("#status:text('stopped by you')")
        assert 30 < page.locator(".token").count() < 2000


@browser_test
@pytest.mark.parametrize("how", ["hover", "focus", "chart"])
def test_a_token_shows_what_the_api_says_of_it(visit: Visit, how: str) -> None:
    logprobs = complete(visit.address)["logprobs"]
    page = visit.write()
    for is_likely in (True, False):
        likely = [len(top or ()) == 10 for top in logprobs["top_logprobs"]]  # an eleventh is the one drawn
        number = next(n for n in range(5, len(likely)) if likely[n] == is_likely)
        token, box = page.locator("#story .token").nth(number), page.locator("#bars").bounding_box()
        if how == "chart":
            column = (number + 0.5) / max(60, len(likely))
            page.mouse.move(box["x"] + box["width"] * column, box["y"] + 5)
        else:
            token.hover() if how == "hover" else token.focus()
        assert "shown" in token.get_attribute("class")
        assert page.locator("#bars rect").nth(number).get_attribute("class").endswith("shown")
        pairs = sorted(logprobs["top_logprobs"][number].items(), key=lambda pair: -pair[1])
        assert page.locator("#choices .name").all_text_contents() == [visible(name) for name, _ in pairs]
        assert page.locator("#choices .share").all_text_contents() == [percent(value) for _, value in pairs]
        assert page.locator("#choices .chosen .name").all_text_contents() == [visible(logprobs["tokens"][number])]
        assert page.locator("#choices .outside").count() == (not is_likely)
        sampled = [percent(math.log(p)) if p else "0 %" for p in logprobs["sampling_probs"][number] or ()]
        assert page.locator("#choices .sampled").all_text_contents() == sampled
        facts = page.text_content("#facts")
        assert percent(logprobs["token_logprobs"][number]) in facts
        bits = logprobs["entropy"][number] / math.log(2)
        assert f"Entropy{bits:.1f} bits" in facts
        assert float(page.locator("#bars rect").nth(number).get_attribute("height")) == pytest.approx(bits)


@browser_test
def test_all_of_it_goes_by_keyboard(visit: Visit) -> None:
    page = visit.open()
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("A big red dog")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#story:not(.writing) .token")
    order = []
    while len(order) < 9:
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == ["write", "temperature", "top_p", "top_k", "seed", "max_tokens", "stop", "again", ""]
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "End", "ArrowRight", "Home"):
        page.keyboard.press(key)
        number = int(focused(page, "element => element.dataset.number"))
        assert page.locator("#story [tabindex='0']").count() == 1
        assert page.locator("#story .shown").get_attribute("data-number") == str(number)
        assert f"no. {number + 1}," in page.text_content("#facts")
        walked.append(number)
    assert walked[:3] == [1, 2, 1]
    assert walked[3] > walked[4] < 4
    assert walked[5:] == [page.locator("#story .token").count() - 1] * 2 + [0]


def answer(text: str) -> dict[str, str]:
    return {"content_type": "text/event-stream", "body": text}


EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>&amp;"


@browser_test
def test_a_prompt_that_looks_like_html_is_text(visit: Visit) -> None:
    page = visit.write(SETTINGS | {"prompt": EVIL})
    assert page.text_content("#story").startswith(EVIL)
    assert (page.locator("img").count(), page.locator("script").count()) == (0, 1)


@browser_test
def test_whatever_the_server_says_is_text(visit: Visit) -> None:
    lists: dict[str, list[Any]] = {"tokens": [EVIL], "token_bytes": [list(EVIL.encode())], "top_logprobs": [{EVIL: -1}]}
    lists |= {"token_ids": [1], "token_logprobs": [-1], "entropy": [1]}
    chunk = json.dumps({"choices": [{"logprobs": lists, "finish_reason": EVIL}]})
    visit.page.route("**/v1/completions", lambda route: route.fulfill(**answer(f"data: {chunk}\n\n")))
    visit.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": EVIL}]}))
    page = visit.write()
    page.locator("#story .token").hover()
    for place in ("#story", "#piece", "#choices .name"):
        assert page.text_content(place).replace("␣", " ") == EVIL
    assert page.text_content("#model") == f"model: {EVIL}"
    assert (page.locator("img").count(), page.locator("script").count()) == (0, 1)


@browser_test
def test_a_link_tells_the_same_story_and_another_seed_another(visit: Visit, visit_of: Callable[..., Visit]) -> None:
    page = visit.open(SETTINGS | {"prompt": "A & B = #1 +ü", "top_k": "50", "temperature": "1"})
    page.click("#again")
    page.wait_for_selector("#story:not(.writing) .token")
    seed = page.input_value("#seed")
    story, link = page.text_content("#story"), page.url
    assert f"seed={seed}" in link
    assert seed != SETTINGS["seed"]
    other = visit_of(visit.address).page
    other.goto(link)
    assert (other.input_value("#prompt"), other.input_value("#top_k")) == ("A & B = #1 +ü", "50")
    other.click("#write")
    other.wait_for_selector("#story:not(.writing) .token")
    assert other.text_content("#story") == story
    other.fill("#seed", str(int(seed) + 1))
    other.click("#write")
    other.wait_for_selector("#story:not(.writing) .token")
    assert other.text_content("#story") != story


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim() !== "";
  return [...document.body.querySelectorAll("*")]
    .filter((element) => element.checkVisibility() && [...element.childNodes].some(isText))
    .map((element) => [light(getComputedStyle(element).color), light(behind(element)), element.outerHTML.slice(0, 80)])
    .map(([text, back, html]) => [(Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05), html]);
}"""


@browser_test
@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
@pytest.mark.parametrize("width", [360, 820, 1200])
def test_it_is_readable_and_fits(
    visit_of: Callable[..., Visit], process: Any, scheme: str, is_dark: bool, width: int
) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 740}, "reduced_motion": "reduce"}
    visit = visit_of(process.address, **options)
    page = visit.write(SETTINGS | {"prompt": "word" * 150, "max_tokens": "100"})
    page.locator("#story .token").nth(20).focus()
    page.evaluate("showError('x'.repeat(300))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) > 100
    assert [(ratio, html) for ratio, html in contrasts if ratio < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", background)[0]) < 128) == is_dark
    assert page.evaluate("document.getAnimations().length") == 0


@browser_test
def test_a_finger_opens_the_details_and_closes_them(visit_of: Callable[..., Visit], process: Any) -> None:
    page = visit_of(process.address, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True).open()
    page.tap("#write")
    page.wait_for_selector("#story:not(.writing) .token")
    assert page.is_visible("#hint")
    page.locator("#story .token").nth(12).tap()
    assert "no. 13," in page.text_content("#facts")
    page.tap("#close")
    assert page.is_hidden("#choices")
    assert page.is_visible("#hint")


@browser_test
@pytest.mark.parametrize(
    ("fulfilled", "message"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}, "json": {"error": {"message": "the queue is full."}}},
         "the queue is full. Try again in 7 s."),
        ({"status": 502, "body": "<b>bad gateway</b>"}, "The server answered with status 502."),
        ({"status": 400, "json": {"error": {"message": "<img src=x onerror=a()>"}}}, "<img src=x onerror=a()>"),
        (answer('data: {"error": {"message": "the engine has ended"}}\n\n'), "the engine has ended"),
        (answer('data: {"choices": []}\n\n'), LOST),
        (None, LOST),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said(visit: Visit, fulfilled: dict[str, Any] | None, message: str) -> None:
    visit.page.route("**/v1/completions", lambda route: route.fulfill(**fulfilled) if fulfilled else route.abort())
    page = visit.write()
    assert page.text_content("#error") == message
    assert "broken off" in page.text_content("#status")
    assert page.is_visible("#error")
    if fulfilled is None or "status" in fulfilled:
        visit.expect_refusals()
    page.unroute("**/v1/completions")
    page.click("#write")
    page.wait_for_selector("#story:not(.writing) .token")
    assert page.is_hidden("#error")


@browser_test
def test_the_servers_own_words_are_shown(visit: Visit) -> None:
    settings = SETTINGS | {"prompt": "dog " * 3000}
    page = visit.write(settings)
    assert page.text_content("#error") == complete(visit.address, settings)["message"]
    visit.expect_refusals()


@browser_test
@pytest.mark.parametrize("how", ["too long a prompt", "the server is gone"])
def test_a_refused_request_leaves_the_story_on_the_page(visit: Visit, how: str) -> None:
    page = visit.write()
    page.locator("#story .token").nth(3).focus()
    before = {part: page.inner_html(part) for part in ("#story", "#bars", "#details", "#status")}
    if how == "the server is gone":
        page.route("**/v1/completions", lambda route: route.abort())
    else:
        page.fill("#prompt", "dog " * 3000)
    page.click("#write")
    page.wait_for_selector("#error:visible")
    assert {part: page.inner_html(part) for part in before} == before
    visit.expect_refusals()


@browser_test
def test_the_window_follows_a_reader_at_the_end_and_no_other(visit_of: Callable[..., Visit], process: Any) -> None:
    page = visit_of(process.address, viewport={"width": 500, "height": 500}).open(
        SETTINGS | {"temperature": "0", "max_tokens": "1900"}
    )
    page.click("#write")
    page.wait_for_selector(".token >> nth=400", state="attached")
    end = "document.querySelector('#story .token:last-child').getBoundingClientRect().bottom"
    wait_for(lambda: page.evaluate(f"scrollY > 200 && {end} <= innerHeight"))
    page.evaluate("scrollTo(0, 0)")
    count = page.locator(".token").count()
    wait_for(lambda: page.locator(".token").count() > count)
    page.wait_for_selector("#story:not(.writing)")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate(f"{end} > innerHeight")
    assert page.evaluate(
        "document.querySelector('#story').scrollHeight === document.querySelector('#story').clientHeight"
    )


@browser_test
def test_on_a_narrow_window_nothing_lies_over_the_form(visit_of: Callable[..., Visit], process: Any) -> None:
    page = visit_of(process.address, viewport={"width": 360, "height": 740}).open()
    page.press("#prompt", "Control+Enter")  # no pointer, under which tokens would be shown
    page.wait_for_selector("#story:not(.writing) .token")
    covered = """(id) => {
      const form = document.querySelector("#form").getBoundingClientRect();
      const details = document.querySelector("#details").getBoundingClientRect();
      return details.top < form.bottom;
    }"""
    for is_shown in (False, True):
        if is_shown:
            page.locator("#story .token").nth(5).focus()
        for top in range(0, page.evaluate("document.documentElement.scrollHeight"), 100):
            page.evaluate("(top) => scrollTo(0, top)", top)
            assert not page.evaluate(covered), (is_shown, top)
    assert page.evaluate("getComputedStyle(document.querySelector('#details')).position") == "sticky"
    page.press("#close", "Enter")
    assert page.evaluate("getComputedStyle(document.querySelector('#details')).position") == "static"


@browser_test
def test_letters_of_joined_scripts_stay_joined(visit: Visit) -> None:
    word = "مرحبا"
    page = visit.write(SETTINGS | {"prompt": word, "max_tokens": "1"})
    assert page.locator("#story .token.prompt").count() > 1
    widths = page.evaluate(
        """(word) => {
      const range = document.createRange(), pieces = [...document.querySelectorAll("#story .token.prompt")];
      range.setStartBefore(pieces[0]);
      range.setEndAfter(pieces.at(-1));
      const asTokens = range.getBoundingClientRect().width;
      const width = (separator) => {
        const span = document.createElement("span");
        span.textContent = [...word].join(separator);
        document.querySelector("#story").append(document.createElement("br"), span);
        return span.getBoundingClientRect().width;
      };
      return [asTokens, width(""), width("\u200c")];
    }""",
        word,
    )
    as_tokens, as_one, not_joined = widths
    assert abs(as_one - not_joined) > 2, "this font joins nothing"
    assert as_tokens == pytest.approx(as_one, abs=0.1)


@browser_test
def test_one_choice_is_not_several(visit: Visit) -> None:
    lists = {"tokens": ["ab", "cd"], "token_bytes": [[97, 98], [99, 100]], "token_ids": [1, 2]}
    lists |= {"token_logprobs": [-1e-9, -1], "entropy": [1e-9, 1.0], "top_logprobs": [{"ab": 0}, {"cd": -1}]}
    chunk = json.dumps({"choices": [{"logprobs": lists, "finish_reason": "length"}]})
    visit.page.route("**/v1/completions", lambda route: route.fulfill(**answer(f"data: {chunk}\n\ndata: [DONE]\n\n")))
    page = visit.write()
    for number, words in enumerate(("as open as 1 equal choice", "as open as 2.7 equal choices")):
        page.locator("#story .token").nth(number).focus()
        assert page.text_content("#facts").endswith(words)


@browser_test
@pytest.mark.parametrize("has_clipboard", [True, False])
def test_the_text_can_be_copied(visit: Visit, has_clipboard: bool) -> None:
    if has_clipboard:
        visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    else:
        visit.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page = visit.write()
    page.click("#copy")
    page.wait_for_selector("#copy:text('Copied')")
    assert focused(page) == "copy"
    page.fill("#prompt", "")
    page.focus("#prompt")
    page.keyboard.press("Control+V")
    assert page.input_value("#prompt") == page.text_content("#story").replace("\r\n", "\n").replace("\r", "\n")


@browser_test
def test_the_tokens_of_the_prompt_are_counted_as_it_is_typed(visit: Visit) -> None:
    page = visit.open()
    for text in ("The naïve cat", "A big red dog went home 你好"):
        page.fill("#prompt", text)
        count = httpx.post(f"{visit.address}/tokenize", json={"prompt": text}).json()["count"]
        page.wait_for_selector(f"#prompt-count:text-is('{count} of 2,048 tokens')")
    page.route("**/tokenize", lambda route: route.abort())
    page.fill("#prompt", "The cat sat")
    wait_for(lambda: page.text_content("#prompt-count") == "")
    assert page.is_hidden("#error")
    visit.expect_refusals()


@pytest.fixture
def prefix_proxy(process: Any) -> Iterator[str]:
    """The address of a reverse proxy that has the server under /llm/, and nothing else."""

    class Proxy(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            before, prefix, path = self.path.partition("/llm/")
            url = f"{process.address}/{path}" if prefix and not before else f"{process.address}/nothing"
            with httpx.stream(self.command, url, headers=list(self.headers.items()), content=body) as reply:
                self.send_response(reply.status_code)
                for name, value in reply.headers.items():
                    if name not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                for data in reply.iter_raw():
                    self.wfile.write(data)

        do_GET = do_POST = _forward  # noqa: N815 (names of the base class)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/llm"
        server.shutdown()
        thread.join()


@browser_test
def test_it_works_behind_a_path_prefix(visit_of: Callable[..., Visit], prefix_proxy: str, process: Any) -> None:
    page = visit_of(prefix_proxy).write()
    assert page.text_content("#story") == complete(process.address)["text"]
    assert page.text_content("#model") == "model: random-stories, context: 2,048 tokens"
    page.wait_for_selector("#prompt-count:text('of 2,048 tokens')")


@browser_test
def test_a_stream_may_be_cut_anywhere(visit: Visit) -> None:
    choice = complete(visit.address, SETTINGS | {"prompt": "naïve 你好"})
    choice["logprobs"]["tokens"][0] = "naïve 你好"
    chunk = json.dumps({"choices": [choice | {"finish_reason": "length"}]}, ensure_ascii=False)
    events = f": comment\r\n\r\nevent: message\r\ndata: {chunk}\r\n\r\ndata:[DONE]\n\n"
    visit.page.route("**/v1/completions", lambda route: route.fulfill(**answer(events)))
    visit.page.add_init_script("""
        const whole = window.fetch;
        window.fetch = async (...request) => {
          const bytes = new Uint8Array(await (await whole(...request)).arrayBuffer());
          return new Response(new ReadableStream({ start(controller) {
            for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
            controller.close();
          } }));
        };""")
    page = visit.write()
    assert page.text_content("#story") == choice["text"]
    page.locator("#story .token").first.focus()
    assert page.text_content("#piece") == "naïve␣你好"
    assert page.is_hidden("#error")


@browser_test
def test_a_server_with_a_token_is_asked_with_it(
    visit_of: Callable[..., Visit], start_process: Callable[..., Any]
) -> None:
    visit = visit_of(start_process(token=SECRET).address)
    page = visit.open()
    page.wait_for_selector("#key:focus")
    assert page.get_attribute("#key", "type") == "password"
    assert "Enter the server's access token" in page.text_content("#error")
    visit.expect_refusals()
    page.keyboard.type(SECRET)
    page.keyboard.press("Enter")
    page.wait_for_selector("#story:not(.writing) .token")
    assert page.text_content("#story").startswith(SETTINGS["prompt"])
    assert page.text_content("#model") == "model: random-stories, context: 2,048 tokens"
    assert page.is_hidden("#error")
    assert SECRET not in page.url
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
