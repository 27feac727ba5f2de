"""Pages in a real Chromium: with the keyboard, on a phone, in the dark, with hostile answers, and when things go wrong."""

import json
import re
import time

import pytest
from browser import chromium, faults, log_in
from pages_world import Scripted, world, write_run
from serve_gateway import serving
from test_pages import HOSTILE

from bedplate.serve.limits import LimitSettings, LimitsSettings
from bedplate.serve.pages.render import shown

EVERY = ("/", "/pages/models", "/pages/requests", "/pages/receipts", "/pages/runs", "/pages/runs/adapt-triage", "/docs", "/pages/nothing")


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def harbour(tmp_path_factory):
    with world(tmp_path_factory.mktemp("world"), step_s=0.01) as served:
        yield served


@pytest.fixture
def page(browser):
    """A page of a new browser; whatever its script or its policy complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda told: complaints.append(told.text) if told.type == "error" and "Failed to load resource" not in told.text else None)
    page.on("request", lambda request: None if re.match(r"http://127\.0\.0\.1:", request.url) else complaints.append(f"asked {request.url}"))
    yield page
    context.close()
    assert complaints == []


def send(page, question):
    page.fill("#question", question)
    page.press("#question", "Control+Enter")


def settled(page):
    page.wait_for_selector("#send:not(.stop)")
    page.wait_for_selector(".answer.coming", state="detached")


def words(page):
    return page.locator(".answer .words").all_inner_texts()




@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_page_is_legible_labelled_and_fits(browser, harbour, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 760}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{harbour.url}/login")
    assert faults(page) == []
    log_in(page, harbour)
    send(page, "Where do the birds go?")
    settled(page)
    assert faults(page) == [], "playground with an answer"
    for path in EVERY:
        page.goto(harbour.url + path)
        assert faults(page) == [], path
    page.goto(f"{harbour.url}/pages/requests")
    page.click("td a")
    page.wait_for_url("**/pages/receipts/*")
    assert faults(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(23, 22, 20)") == (scheme == "dark")
    context.close()


def test_faults_are_found(page, harbour):
    """The checks above can fail."""
    page.goto(f"{harbour.url}/login")
    page.evaluate("""() => {
      const box = document.createElement('div');
      box.append(document.createElement('input'), document.createElement('button'), 'pale');
      box.style.cssText = 'color: #bbb; background: #fff; width: 3000px';
      document.querySelector('main').append(box);
    }""")
    told = " ".join(faults(page))
    assert "contrast" in told and "no label" in told and "no name" in told and "sideways" in told


def test_an_answer_streams_with_its_numbers_route_and_receipt_and_moves_nothing(page, harbour):
    log_in(page, harbour)
    page.evaluate("""() => { window.shifts = 0; new PerformanceObserver((list) => list.getEntries().forEach((one) => { window.shifts += one.value; }))
      .observe({ type: 'layout-shift', buffered: true }); }""")
    harbour.fake._step_s = 0.03
    send(page, "Where do the birds go?")
    page.wait_for_selector(".answer.coming .words:not(:empty)")
    early = words(page)[0]
    assert page.inner_text("#send") == "Stop"
    tops = page.evaluate("[...document.querySelectorAll('.answer .head, .answer .words, .composer')].map((node) => node.getBoundingClientRect().top)")
    settled(page)
    harbour.fake._step_s = 0.01
    assert page.evaluate("[...document.querySelectorAll('.answer .head, .answer .words, .composer')].map((node) => node.getBoundingClientRect().top)") == tops
    assert page.evaluate("window.shifts") < 0.01
    late = words(page)[0]
    assert late.startswith(early) and len(late) > len(early)
    assert re.fullmatch(r"\d+\.\d\d s", page.inner_text(".facts .first")) and float(page.inner_text(".facts .speed")) > 1
    assert int(page.inner_text(".facts .length")) == harbour_tokens(harbour) and page.inner_text(".facts .finish") == "stop" and page.inner_text(".facts .route") == "local"
    with page.context.expect_page() as opened:
        page.click(".facts .receipt a")
    assert "The signature holds." in opened.value.inner_text("main")
    opened.value.fill("#w-answer", page.evaluate("JSON.parse(sessionStorage.playground).turns[0].answers[0].text"))
    opened.value.fill("#w-question", "Where do the birds go?")
    opened.value.click("button:text-is('Compare')")
    opened.value.wait_for_selector("h2 ~ .verdict")
    assert "exactly this answer" in opened.value.inner_text("main") and "exactly this question" in opened.value.inner_text("main")


def harbour_tokens(served):
    log = served.gateway.audit
    log.flush()
    from bedplate.serve.audit_files import newest

    return newest(log.folder, "answer", 1)[0].body["receipt"]["completion_tokens"]


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stop_ends_the_answer_here_and_in_the_engine(page, tmp_path, how):
    with world(tmp_path, generator=None, step_s=0.2) as served:
        log_in(page, served)
        send(page, "Count the lamps")
        page.wait_for_selector(".answer.coming .words:not(:empty)")
        page.keyboard.press("Escape") if how == "Escape" else page.click("#send")
        settled(page)
        assert page.inner_text(".facts .finish") == "stopped" and page.evaluate("document.activeElement.id") == "question"
        until = time.monotonic() + 10
        while served.gateway.exchanges:
            assert time.monotonic() < until
            time.sleep(0.02)
        before = words(page)
        time.sleep(0.3)
        assert words(page) == before and len(before[0].split()) < 8


def test_edit_asks_anew_and_forgets_what_followed(page, harbour):
    log_in(page, harbour)
    for question in ("first", "second", "third"):
        send(page, question)
        settled(page)
    page.locator(".turn").nth(1).locator(".edit").click()
    page.keyboard.press("Escape")
    assert page.locator(".editing").count() == 0 and page.locator(".turn").count() == 3
    page.locator(".turn").nth(1).locator(".edit").click()
    page.fill(".editing textarea", "second, but other words")
    page.keyboard.press("Control+Enter")
    settled(page)
    assert page.locator(".question .words").all_inner_texts() == ["first", "second, but other words"]
    turns = [turn.text for turn in harbour.fake.asked[-1].turns]
    assert turns[0] == "first" and turns[2] == "second, but other words" and len(turns) == 3
    page.keyboard.press("ArrowUp")  # in the empty field: the last question again
    assert page.input_value(".editing textarea") == "second, but other words"


def test_regenerate_gives_another_answer_in_the_same_place(page, harbour):
    log_in(page, harbour)
    send(page, "once more")
    settled(page)
    first = words(page)
    for _ in range(3):  # two draws may be the same
        page.click(".again")
        settled(page)
        if words(page) != first:
            break
    assert words(page) != first and len(words(page)) == 1 and page.locator(".turn").count() == 1


def test_two_adapters_answer_side_by_side_each_in_its_own_conversation(page, harbour):
    log_in(page, harbour)
    page.select_option("#model", "triage")
    page.select_option("#beside", "summary")
    page.fill("#seed", "7")
    page.fill("#system", "Be brief.")
    page.fill("#longest", "5")
    send(page, "What happened?")
    settled(page)
    assert page.locator(".answer .by").all_inner_texts() == ["triage", "summary"] and len(set(words(page))) == 2
    left, right = (page.locator(".answer").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    send(page, "And then?")
    settled(page)
    asked = {ask.worker: ask for ask in harbour.fake.asked[-2:]}
    said = page.evaluate("JSON.parse(sessionStorage.playground).turns[0].answers.map((one) => one.text)")
    for n, name in enumerate(("triage", "summary")):
        ask = asked[name]
        assert [turn.role for turn in ask.turns] == ["system", "user", "assistant", "user"] and ask.turns[2].text == said[n]
        assert (ask.sampling.max_tokens, ask.sampling.seed, ask.sampling.temperature) == (5, 7, 0.7)


def test_the_whole_way_by_keyboard(page, harbour):
    page.goto(harbour.url)
    page.wait_for_url("**/login?next=/")
    page.keyboard.type(harbour.key)
    page.keyboard.press("Enter")
    page.wait_for_url(harbour.url + "/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("line one")
    page.keyboard.press("Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Meta+Enter")
    settled(page)
    assert page.inner_text(".question .words") == "line one\nline two"
    seen = set()
    for _ in range(60):  # around the page more than once
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("""() => { const at = document.activeElement; const style = getComputedStyle(at);
              return at === document.body ? 'solid 2px' : `${at.id || at.className || at.textContent.trim()} ${style.outlineStyle} ${style.outlineWidth}`; }""")
        )
    assert all(mark.endswith("solid 2px") for mark in seen), seen  # the focus is always to be seen
    reached = " ".join(seen)
    for name in ("skip", "Models", "theme", "model", "beside", "system", "temperature", "fresh", "transcript", "quiet edit", "quiet copy", "quiet again", "question", "send"):
        assert name in reached, name
    page.goto(f"{harbour.url}/pages/models")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip" and page.locator(".skip").bounding_box()["y"] >= -60
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_what_comes_is_said_sentence_by_sentence(page, tmp_path):
    pieces = ["The ", "river is", " high. ", "Boats", " wait. ", "All is", " quiet"]
    with world(tmp_path, generator=Scripted(pieces, step_s=0.05)) as served:
        log_in(page, served)
        page.evaluate("""() => { window.heard = []; new MutationObserver(() => window.heard.push(document.getElementById('said').textContent))
          .observe(document.getElementById('said'), { childList: true, characterData: true, subtree: true }); }""")
        send(page, "news?")
        settled(page)
        assert page.evaluate("window.heard") == ["Asked harbour", "The river is high.", "Boats wait.", "All is quiet harbour has ended: stop"]
        assert page.get_attribute("#said", "role") == "status" and page.get_attribute("#transcript", "aria-live") == "off"


def test_hostile_answers_are_text(page, tmp_path):
    pieces = [HOSTILE[:30], HOSTILE[30:], "\n<iframe src=/v1/models></iframe>\U000e0041\U000e0042 ![x](http://attacker.example/x.png)"]
    with world(tmp_path, generator=Scripted(pieces)) as served:
        log_in(page, served)
        send(page, HOSTILE)
        settled(page)
        expected = shown("".join(pieces))
        assert page.evaluate("document.querySelector('.answer .words').textContent") == expected
        assert page.evaluate("document.querySelector('.question .words').textContent") == shown(HOSTILE)
        for hidden in ("\x1b", "\x07", "\u202e", "\u2066", "\U000e0041"):
            assert hidden not in page.inner_text("body")
        assert page.locator(".words *").count() == 0 and page.locator("iframe, main img").count() == 0
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.click(".answer .copy")
        page.wait_for_selector("#said:text-is('Copied')", state="attached")
        assert page.evaluate("navigator.clipboard.readText()") == expected  # a terminal is safe from a copy, too


def test_script_and_server_show_hidden_characters_alike(page, harbour):
    page.goto(f"{harbour.url}/login")
    text = "".join(map(chr, [*range(1, 0x300), *range(0x2000, 0x2100), *range(0xFEF0, 0x10000), *range(0xE0000, 0xE0100)])) + "🙂"
    assert page.evaluate("async (text) => (await import('/pages/static/text.js')).shown(text)", text) == shown(text)


def test_logging_out_ends_the_session_and_forgets_the_conversation(page, harbour):
    page.goto(f"{harbour.url}/login")
    page.fill("#key", "bp_wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("[role=alert]")
    assert "unknown, expired or revoked" in page.inner_text("[role=alert]")
    log_in(page, harbour)
    assert page.evaluate("document.cookie") == ""  # no script reads it
    send(page, "a secret of mine")
    settled(page)
    page.click("#logout button")
    page.wait_for_url("**/login")
    assert page.evaluate("Object.keys(sessionStorage).length") == 0
    page.goto(harbour.url)
    page.wait_for_url("**/login?next=/")
    log_in(page, harbour)
    assert page.locator(".turn").count() == 0


def test_a_session_that_ends_loses_nothing(page, harbour):
    log_in(page, harbour)
    send(page, "before")
    settled(page)
    harbour.gateway.reception.sessions._sessions.clear()
    send(page, "after")
    page.wait_for_selector(".trouble")
    assert "Your session has ended." in page.inner_text(".trouble")
    page.click(".trouble a")
    page.fill("#key", harbour.key)
    page.press("#key", "Enter")
    page.wait_for_url(harbour.url + "/")
    assert page.locator(".question .words").all_inner_texts() == ["before", "after"]
    page.locator(".again").last.click()
    settled(page)
    assert page.locator(".trouble").count() == 0 and words(page)[1]


def test_another_caller_in_the_same_tab_sees_nothing_of_the_first(page, harbour):
    from bedplate.serve import keys

    log_in(page, harbour)
    send(page, "mine alone")
    settled(page)
    harbour.gateway.reception.sessions._sessions.clear()
    other = keys.add(harbour.gateway.settings.keys, name="other", tenant="elsewhere", scopes=("generate",))
    harbour.gateway.reception.ring.refresh()
    page.goto(f"{harbour.url}/login")
    page.fill("#key", other.secret)
    page.press("#key", "Enter")
    page.wait_for_url(harbour.url + "/")
    assert page.locator(".turn").count() == 0 and "mine alone" not in page.evaluate("JSON.stringify(sessionStorage)")


def test_limits_and_failures_say_what_to_do(page, tmp_path):
    limits = LimitsSettings(key=LimitSettings(requests_per_minute=1))
    with world(tmp_path, limits=limits) as served:
        log_in(page, served)
        send(page, "first")
        settled(page)
        send(page, "second")
        page.wait_for_selector(".trouble")
        assert re.search(r"at its 1 requests a minute.*Wait a little.*again in \d+ s", page.inner_text(".trouble"), re.S)
        page.context.set_offline(True)
        page.locator(".again").last.click()
        page.wait_for_selector(".trouble:has-text('cannot be reached')")
        page.context.set_offline(False)
        assert page.locator(".question .words").all_inner_texts() == ["first", "second"]


def test_an_answer_that_breaks_off_keeps_what_was_said(page, tmp_path):
    from bedplate.core.errors import ResourceError
    from bedplate.testing.generators import FakeGenerator

    fake = FakeGenerator(fails=lambda ask: ResourceError("the memory is full", "ask for less"), fails_after=3, step_s=0.02)
    with world(tmp_path, generator=fake) as served:
        log_in(page, served)
        send(page, "too much")
        page.wait_for_selector(".trouble")
        assert "Regenerate" in page.inner_text(".trouble") and len(words(page)[0].split()) == 3


def test_where_no_model_writes_text_the_playground_says_what_to_do(page, tmp_path):
    class Sorts(Scripted):
        def workers(self):
            import dataclasses

            return [dataclasses.replace(super().workers()[0], task="classify")]

    with world(tmp_path, generator=Sorts([])) as served:
        log_in(page, served)
        assert "No model here writes text" in page.inner_text("h1") and "bedplate serve" in page.inner_text("main") and faults(page) == []


def test_the_theme_is_chosen_and_kept(page, harbour):
    page.emulate_media(color_scheme="light")
    page.goto(f"{harbour.url}/login")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for label in ("Theme: light", "Theme: dark"):
        page.click("#theme")
        assert page.inner_text("#theme") == label
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark and page.inner_text("#theme") == "Theme: dark"
    page.click("#theme")
    assert page.evaluate(ground) == light and page.inner_text("#theme") == "Theme: auto"


def test_curves_grow_while_the_run_goes_on_and_are_read_by_keyboard(page, harbour):
    log_in(page, harbour, "/pages/runs/adapt-triage")
    assert "140 of 400" in page.inner_text(".strip")
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("End")
    reading = page.inner_text(".reading >> nth=0")
    assert re.match(r"step 140: training \d\.\d+", reading)
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".reading >> nth=0").startswith("step 139:")
    with (harbour.gateway.settings.runs[0] / "adapt-triage" / "events.jsonl").open("a") as handle:
        handle.write(json.dumps({"t": time.time(), "event": "step", "step": 141, "steps": 400, "loss": 2.1}) + "\n")
    page.wait_for_selector(".strip:has-text('141 of 400')", timeout=15_000)
    assert page.evaluate("document.activeElement.classList.contains('plot')") and page.inner_text(".reading >> nth=0").startswith("step")
    page.click("#pause")
    assert page.get_attribute("#pause", "aria-pressed") == "true"


def test_a_new_run_appears_and_leads_to_its_page(page, tmp_path):
    with serving(tmp_path / "g", scopes=("admin",), runs=(tmp_path / "runs",)) as served:
        log_in(page, served, "/pages/runs")
        assert "No run has written" in page.inner_text("main")
        write_run(tmp_path / "runs" / "fresh", 12)
        page.wait_for_selector("text=fresh", timeout=15_000)
        page.click("text=fresh")
        page.wait_for_url("**/pages/runs/fresh")
        assert page.locator(".chart").count() == 5


def test_live_parts_say_when_the_gateway_is_gone_or_the_session(page, harbour):
    log_in(page, harbour, "/pages/requests")
    page.context.set_offline(True)
    page.wait_for_selector(".live-state:has-text('cannot be reached')", timeout=15_000)
    page.context.set_offline(False)
    page.wait_for_selector(".live-state:empty", state="attached", timeout=15_000)
    harbour.gateway.reception.sessions._sessions.clear()
    page.wait_for_url("**/login?next=*", timeout=15_000)


def test_on_a_phone_settings_open_and_two_answers_stand_below_each_other(page, harbour):
    page.set_viewport_size({"width": 360, "height": 700})
    log_in(page, harbour)
    assert not page.is_visible("#model")
    page.click("#open-settings")
    assert page.is_visible("#model") and page.get_attribute("#open-settings", "aria-expanded") == "true"
    page.select_option("#beside", "summary")
    page.click("#open-settings")
    send(page, "x" * 300)
    settled(page)
    first, second = (page.locator(".answer").nth(n).bounding_box() for n in (0, 1))
    assert first["x"] == second["x"] and second["y"] > first["y"] and faults(page) == []


def test_a_script_that_came_in_anyway_is_not_run(browser, harbour):
    page = browser.new_page()
    log_in(page, harbour)
    blocked = page.evaluate("""() => new Promise((done) => {
      document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
      const script = document.createElement('script'); script.textContent = 'window.ran = true'; document.body.append(script);
      setTimeout(() => done('nothing'), 2000);
    })""")
    assert blocked.startswith("script-src") and page.evaluate("window.ran") is None
