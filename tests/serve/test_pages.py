"""Pages: what they hand out and to whom, that hostile text stays text, and the curves, lineage and limits behind them."""

import json
import math
import re
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages_world import Scripted, artifact, held, world, write_run
from serve_gateway import USER, serving

from bedplate.core.artifact import read_manifest
from bedplate.serve import keys
from bedplate.serve.audit_files import newest
from bedplate.serve.caller import Caller
from bedplate.serve.limits import Limiter, LimitSettings, LimitsSettings
from bedplate.serve.pages import runs
from bedplate.serve.pages.chart import SIDE, Curve, chart, ticks
from bedplate.serve.pages.files import files
from bedplate.serve.pages.lineage import ancestors, artifacts_below, gather
from bedplate.serve.pages.render import HIDDEN, TEMPLATES, shown
from bedplate.serve.settings import ServeSettings

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`[link](javascript:alert(3)) \x1b[31mred\x1b]0;title\x07 \u202egnp.exe \u2066hidden\u2069"
PATHS = ("/", "/pages/models", "/pages/requests", "/pages/requests/now", "/pages/receipts", "/pages/runs", "/pages/runs/now", "/pages/runs/pretrain-harbour", "/docs")
BROWSER = {"accept": "text/html", "sec-fetch-site": "same-origin"}


@pytest.fixture(scope="module")
def harbour(tmp_path_factory):
    with world(tmp_path_factory.mktemp("world")) as served:
        yield served


def ask(served, text="What does the river do?", model="harbour"):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{served.url}/v1/chat/completions", headers=served.headers, json=body)


@contextmanager
def entered(served, key=None):
    with httpx.Client(base_url=served.url, headers=BROWSER) as browser:
        assert browser.post("/login", data={"key": key or served.key}).status_code == 303
        yield browser


@pytest.mark.parametrize("path", PATHS)
def test_every_page_comes_from_here_alone_and_holds_no_secret(harbour, path):
    with entered(harbour) as browser:
        answered = browser.get(path)
        assert answered.status_code == 200 and answered.headers["content-type"].startswith("text/html") and answered.headers["x-frame-options"] == "DENY"
        policy = answered.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "style-src 'self'" in policy and "unsafe" not in policy
        assert not re.findall(r'(?:src|href|action)="(?!/|#)', answered.text) and "//" not in re.sub(r"<!doctype.*?>|</\w+>", "", answered.text).replace("http", "")
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! (?:type=\"module\" )?src=\"/pages/static/\w+\.js\"></script>)", answered.text)
        assert harbour.key not in answered.text and browser.cookies["bedplate_session"] not in answered.text


def test_templates_and_scripts_use_no_markup_from_strings():
    for path in TEMPLATES.iterdir():
        assert not re.search(r"\|\s*safe|autoescape|Markup", path.read_text()), path.name
    for name, file in files().items():
        if name.endswith(".js"):
            assert not re.search(rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?:", file.content), name


def test_files_are_given_out_by_name_alone_and_kept_by_their_tag(harbour):
    first = httpx.get(f"{harbour.url}/pages/static/style.css")
    assert first.status_code == 200 and first.headers["content-type"] == "text/css; charset=utf-8"
    again = httpx.get(f"{harbour.url}/pages/static/style.css", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    for name in ("..%2f__init__.py", "%2e%2e/render.py", "render.py", "style.css/", ".", "nothing.js"):
        assert httpx.get(f"{harbour.url}/pages/static/{name}").status_code in (401, 404)


@pytest.mark.parametrize(("path", "scope"), [("/", "generate"), ("/pages/models", "models"), ("/pages/receipts", "receipts"), ("/pages/runs", "admin"), ("/pages/runs/pretrain-harbour", "admin")])
def test_a_page_that_a_key_may_not_see_says_so_and_is_not_linked(harbour, tmp_path, path, scope):
    made = keys.add(harbour.gateway.settings.keys, name=f"without {scope}", tenant="other", scopes=sorted({"embed", *USER} - {scope}))
    harbour.gateway.reception.ring.refresh()
    with entered(harbour, made.secret) as browser:
        refused = browser.get(path)
        assert refused.status_code == 403 and "<h1>Not allowed</h1>" in refused.text and f"the scope &#39;{scope}&#39;" in refused.text
        assert f'href="{path}"' not in refused.text.replace('class="brand" href="/"', "")
        assert browser.get(path, headers={"accept": "*/*"}).json()["error"]["type"] == "permission_error"


def test_what_is_not_there_is_a_page_for_browsers_and_json_for_programs(harbour):
    with entered(harbour) as browser:
        for path in ("/pages/nothing", "/pages/runs/nothing", "/pages/runs/nothing/now"):
            assert browser.get(path).status_code == 404 and "<h1>Not here</h1>" in browser.get(path).text
        assert "error" in browser.get("/pages/nothing", headers={"accept": "*/*"}).json()
        assert "Not logged in" not in browser.get("/").text
        assert httpx.get(harbour.url + "/pages/runs", headers={"accept": "text/html"}).headers["location"] == "/login?next=/pages/runs"


def test_models_stand_with_their_lineage(harbour):
    with entered(harbour) as browser:
        text = browser.get("/pages/models").text
    digests = {name: read_manifest(folder).digest for name, folder in ((p.name, p) for p in artifacts_below(harbour.gateway.settings.runs))}
    for name in ("harbour-20m", "corpus", "tokenizer", "triage", "summary", "sorter"):
        assert f'data-copy="{digests[name]}"' in text, name
    triage = text[text.index('id="triage"') :]
    assert triage.index(digests["triage"]) < triage.index('href="#harbour"') < triage.index('data-copy="tttt')  # its base, and what is not at hand


def test_a_lineage_ends_where_nothing_is_known_and_never_runs_in_circles(tmp_path):
    corpus = artifact(tmp_path / "corpus", "corpus")
    model = artifact(tmp_path / "model", "model", {"corpus": corpus, "lost": "f" * 64})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    known = gather([tmp_path / name for name in ("corpus", "model", "broken", "missing")])
    found = ancestors(model, known, {})
    assert [(one.role, one.digest, one.name, one.manifest is None) for one in found.parents] == [("corpus", corpus, "corpus", False), ("lost", "f" * 64, "", True)]
    name, manifest = known[corpus]
    circular = {corpus: (name, type(manifest)(manifest.kind, manifest.format, manifest.files, {"itself": corpus}))}
    deep, one = 0, ancestors(corpus, circular, {})
    while one.parents:
        deep, one = deep + 1, one.parents[0]
    assert deep == 12


def test_requests_show_what_is_under_way_the_limits_and_the_last_answers(harbour):
    identity = ask(harbour, model="triage").json()["id"]
    with entered(harbour) as browser:
        text = browser.get("/pages/requests").text
        assert "All tenants." in text and "key</span> tests" in text and "of 120" in text and f"/pages/receipts/{identity}" in text
        body = {"model": "harbour", "stream": True, "messages": [{"role": "user", "content": "slowly"}]}
        with httpx.stream("POST", f"{harbour.url}/v1/chat/completions", headers=harbour.headers, json=body) as answer:
            next(answer.iter_lines())
            under_way = browser.get("/pages/requests/now").text
            assert "1 of 1,024 places" in under_way and answer.headers["x-bedplate-receipt"] in under_way


def test_a_tenant_sees_nothing_of_others(harbour):
    mine = ask(harbour).json()["id"]
    made = keys.add(harbour.gateway.settings.keys, name="stranger", tenant="elsewhere", scopes=USER)
    harbour.gateway.reception.ring.refresh()
    with entered(harbour, made.secret) as browser:
        text = browser.get("/pages/requests").text
        assert mine not in text and "soc" not in text and "key</span> stranger" in text and "tenant</span> elsewhere" in text
        assert browser.get(f"/pages/receipts/{mine}").status_code == 404
        assert browser.post(f"/pages/receipts/{mine}", data={"answer": "x"}).status_code == 404


def test_a_receipt_is_checked_and_compared_with_words(harbour):
    answered = ask(harbour, "Where do\nthe birds go?")
    identity, said = answered.json()["id"], answered.json()["choices"][0]["message"]["content"]
    with entered(harbour) as browser:
        page = browser.get(f"/pages/receipts/{identity}").text
        assert "The signature holds." in page and harbour.gateway.signer.public.id in page and said.strip() not in page
        assert browser.get("/pages/receipts", params={"id": f" {identity} "}).headers["location"] == f"/pages/receipts/{identity}"
        same = browser.post(f"/pages/receipts/{identity}", data={"answer": said, "question": "Where do\r\nthe birds go?"}).text
        assert "exactly this answer" in same and "exactly this question" in same
        other = browser.post(f"/pages/receipts/{identity}", data={"answer": said + " "}).text
        assert "this is not the answer" in other and "question." not in re.sub(r"<[^>]+>", "", other).split("Is it about these words?")[1]
        assert browser.post(f"/pages/receipts/{identity}", data={"answer": ""}).status_code == 400
        assert browser.post(f"/pages/receipts/{identity}", data={"answer": said}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        for wrong in ("nothing", "../../keys.json", "a" * 300, "%00", "<script>"):
            refused = browser.get("/pages/receipts", params={"id": wrong}, follow_redirects=True)
            assert refused.status_code == 404 and "<script>" not in refused.text


def test_without_audit_pages_say_how_to_keep_one(tmp_path):
    with serving(tmp_path, keys=None) as served:
        assert "keeps no audit" in httpx.get(f"{served.url}/pages/requests", headers=BROWSER).text
        assert "keeps no audit" in httpx.get(f"{served.url}/pages/receipts", headers=BROWSER).text
        assert "settings name no folders of runs" in httpx.get(f"{served.url}/pages/runs", headers=BROWSER).text
        assert "Log out" not in httpx.get(f"{served.url}/", headers=BROWSER).text  # no keys: nobody to log out
        assert httpx.get(f"{served.url}/login", headers=BROWSER).headers["location"] == "/"


def test_hostile_names_and_words_stay_text(tmp_path):
    runs_folder = tmp_path / "runs"
    write_run(runs_folder / "<b>bold", 5)
    with (runs_folder / "<b>bold" / "events.jsonl").open("a") as handle:
        handle.write(json.dumps({"t": 1, "event": "run_failed", "error": HOSTILE, "hint": HOSTILE}) + "\n")
        handle.write(json.dumps({"t": 1, "event": "step", "step": 6, "loss_" + HOSTILE: 1.0, "loss": "nan"}) + "\n")
    with serving(tmp_path / "gateway", scopes=(*USER, "admin"), fake=Scripted([HOSTILE]), audit=tmp_path / "audit", runs=(runs_folder,), name="<i>evil") as served:
        ask(served, HOSTILE, "<i>evil")
        with entered(served) as browser:
            for path in ("/", "/pages/models", "/pages/requests", "/pages/runs", "/pages/runs/%3Cb%3Ebold", "/pages/runs/%3Cb%3Ebold/now"):
                answered = browser.get(path)
                assert answered.status_code == 200
                for raw in ("<b>bold", "<i>evil", "<script>alert", "<img", "\x1b", "\u202e", "\u2066"):
                    assert raw not in answered.text, (path, raw)
            assert "[U+202E]gnp.exe" in browser.get("/pages/runs/%3Cb%3Ebold").text


@given(st.text())
def test_what_is_shown_hides_nothing(text):
    assert not HIDDEN.search(shown(text))
    assert shown("plain words\n\tand Grüße, שלום, 👩\u200d💻") == "plain words\n\tand Grüße, שלום, 👩\u200d💻"


def test_runs_are_found_by_name_and_never_by_path(tmp_path):
    for place in ("a/first", "b/first", "b/second"):
        write_run(tmp_path / place, 3)
    found = runs.folders([tmp_path, tmp_path / "a" / "first"])
    assert set(found) == {"a~first", "b~first", "second"}
    assert set(runs.folders([tmp_path / "b" / "second"])) == {"second"} and runs.folders([tmp_path / "none"]) == {}


def test_runs_named_in_the_settings_are_shown_with_curves(tmp_path):
    write_run(tmp_path / "work" / "first", 60, finished=False)
    with held(tmp_path / "work" / "first"), serving(tmp_path / "g", scopes=("admin",), runs=(tmp_path / "work",)) as served, entered(served) as browser:
        assert ServeSettings().runs == () and "first</a>" in browser.get("/pages/runs").text
        page = browser.get("/pages/runs/first").text
        titles = re.findall(r'data-title="([^"]+)"', page)
        assert titles == ["Loss", "Loss by sense", "Bits per byte, held-out", "Positions a second", "Gradient norm", "Learning rate"]
        assert ">running<" in page and "60 of 400" in page and "left, about" in page
        with (tmp_path / "work" / "first" / "events.jsonl").open("a") as handle:
            handle.write(json.dumps({"t": 4e9, "event": "step", "step": 61, "steps": 400, "loss": 2.0}) + "\n")
        assert "61 of 400" in browser.get("/pages/runs/first/now").text  # read again, as it has grown


def test_a_run_that_died_is_not_called_running(tmp_path):
    write_run(tmp_path / "run", 3, finished=False)
    with held(tmp_path / "run"):
        assert runs.read(tmp_path / "run").state == "running"
    assert runs.read(tmp_path / "run").state == "interrupted"


finite = st.floats(-1e12, 1e12) | st.floats(-1e-6, 1e-6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])


@given(st.lists(st.tuples(finite, finite), max_size=60), st.booleans())
def test_any_numbers_give_a_chart_within_its_sides_or_none(pairs, from_zero):
    x, y = (np.array([pair[n] for pair in pairs], dtype=np.float64) for n in (0, 1))
    drawn = chart("any", [Curve("a", x, y, "faint"), Curve("b", np.sort(x), y), Curve("c", x, -y, "dots")], from_zero=from_zero)
    if drawn is None:
        assert not (np.isfinite(x) & np.isfinite(y)).any()
        return
    for curve in drawn.curves:
        assert curve.points and all(0 <= a <= SIDE and 0 <= b <= SIDE for a, b in curve.points)
    labels = [tick.label for tick in drawn.y_ticks]
    assert 2 <= len(labels) <= 12 and all(-1 <= tick.at <= SIDE + 1 for tick in drawn.y_ticks)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_reach_around_what_they_measure(low, span):
    made = ticks(low, low + span, 5)
    step = made[1] - made[0]
    assert made[0] <= low + 1e-6 * step + 1e-6 and made[-1] >= low + span - 1e-6 * step - 1e-6 and 2 <= len(made) <= 8


def test_a_long_curve_is_thinned_and_ends_where_it_ended():
    x = np.arange(100_000, dtype=np.float64)
    drawn = chart("long", [Curve("a", x, np.sqrt(x))])
    assert len(drawn.curves[0].points) == 400 and drawn.curves[0].points[-1][0] == SIDE
    assert drawn.curves[0].last == "316.2" and drawn.x_range == (drawn.x_range[0], 99_999)


def test_accounts_tell_what_is_left(tmp_path):
    limiter = Limiter(LimitsSettings(key=LimitSettings(10, 100, 5), tenant=LimitSettings(20, 0, 9)), clock=lambda: 100.0)
    me, other = Caller("k1", "t1", frozenset()), Caller("k2", "t2", frozenset())
    assert [(one.kind, one.name, one.use.requests_left) for one in limiter.accounts(me)] == [("tenant", "t1", 20), ("key", "k1", 10)] and limiter.accounts() == []
    limiter.admit(me, 30), limiter.admit(other, 10)
    tenant, key = limiter.accounts(me)
    assert (tenant.use.running, tenant.use.requests_left, tenant.use.tokens_left) == (1, 19, math.inf) and (key.use.requests_left, key.use.tokens_left) == (9, 70)
    assert [one.name for one in limiter.accounts()] == ["t1", "t2", "k1", "k2"] and limiter.use("t1") == tenant.use


def test_the_newest_records_come_first_across_files_and_not_from_further_back(tmp_path):
    from bedplate.serve.audit import AuditLog, AuditSettings
    from bedplate.serve.signing import Signer

    log = AuditLog.open(tmp_path / "audit", Signer.open(tmp_path / "key.pem"), AuditSettings(rotate_bytes=2000))
    for n in range(40):
        log.append("answer" if n % 2 else "question", {"id": f"r{n}", "tenant": "ab"[n % 4 // 2]})
        log.flush()
    log.close()
    assert [record.body["id"] for record in newest(tmp_path / "audit", "answer", 3)] == ["r39", "r37", "r35"]
    assert [record.body["id"] for record in newest(tmp_path / "audit", "answer", 2, lambda body: body["tenant"] == "a")] == ["r37", "r33"]
    assert len(newest(tmp_path / "audit", "answer", 100)) == 20 and 0 < len(newest(tmp_path / "audit", "answer", 100, most_bytes=3000)) < 15
    assert newest(tmp_path / "nothing", "answer", 3) == []
