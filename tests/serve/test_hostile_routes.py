"""Routes in a world that is not friendly: money that is spent without being told, questions that look like a place's illness, settings that lie."""

import json
import time
from dataclasses import replace

import httpx
import pytest
from places import Clock, Heard, Place, said
from serve_gateway import serving

from bedplate.core.errors import ConfigError, DataError, RemoteError, StateError
from bedplate.core.generation import Ask, Piece, Sampling, Tool, Turn, Usage
from bedplate.infer.backends.remote import Remote, Settings
from bedplate.serve.breaker import BreakerSettings
from bedplate.serve.budget import Budget, BudgetSettings
from bedplate.serve.policy import Policy
from bedplate.serve.redact import RedactSettings
from bedplate.serve.reload import reload
from bedplate.serve.router import Router
from bedplate.serve.routes import DataSettings, PlaceSettings, RouteSettings, RoutesSettings
from bedplate.serve.settings import ModelSettings, ServeSettings
from bedplate.testing.generators import FakeGenerator

OPEN = DataSettings(may_leave=("public",), unlabelled="public")
DEAR = PlaceSettings("remote", url="https://cloud.example/v1", price_prompt=1e6, price_completion=1e6)  # a unit a token
ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What does the river do?"}], "temperature": 0}


def dear(place, **more):
    settings = RoutesSettings(places={"cloud": DEAR}, rules=(RouteSettings("all", ("cloud",)),), data=OPEN, **more)
    budget = Budget(BudgetSettings(per_tenant_per_day=1000.0), clock=Clock())
    return Router(settings, {"cloud": place}, budget=budget, clock=Clock()), budget


def question(characters=300, **more):
    return Ask(turns=(Turn.of("user", "a" * characters),), sampling=Sampling(max_tokens=20), tenant="soc", **more)


@pytest.mark.parametrize(
    "ending",
    [
        [Piece(text="a"), Piece(finish="cancelled", usage=Usage(0, 0, 1))],  # whoever asked has gone; the endpoint had not told its cost yet
        [Piece(text="a"), Piece(finish="deadline", usage=Usage(0, 0, 1))],
        [Piece(finish="deadline", usage=Usage(0, 0, 0))],
        said("a", usage=(0, 0, None)),  # an endpoint that never tells
        [Piece(text="a"), RemoteError("it broke off")],
    ],
)
def test_a_prompt_that_was_sent_is_paid_for(ending):
    """Endpoints tell what an answer cost at its end; who hung up before it read prompts of any length for nothing."""
    router, budget = dear(Place(ending))
    router.submit(question(), Heard())
    assert budget.spent("soc") >= 100 and budget.left("soc") == pytest.approx(1000 - budget.spent("soc"))


def test_a_question_that_cannot_be_written_does_not_make_its_place_ill():
    """NaN in a tool's schema, which JSON from the net may hold: five of them, and nobody could ask the place any more."""
    heard, sent = Heard(), []

    def answer(request):
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"index": 0, "message": {"content": "ok"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    remote = Remote(Settings("https://cloud.example/v1", "large"), transport=httpx.MockTransport(answer))
    routes = RoutesSettings(places={"cloud": DEAR}, rules=(RouteSettings("all", ("cloud",)),), data=OPEN, breaker=BreakerSettings(failures=1))
    router = Router(routes, {"cloud": remote}, budget=Budget(BudgetSettings(1e9)))
    try:
        with pytest.raises(ConfigError, match="JSON"):
            router.submit(question(tools=(Tool("f", parameters={"minimum": float("nan")}),)), heard)
        assert router.states() == {"cloud": "closed"}
        router.submit(Ask(turns=(Turn.of("user", "half a pair \ud800"),), sampling=Sampling(max_tokens=5)), heard)
        for _ in range(200):
            if heard and heard[-1].last:
                break


            time.sleep(0.02)
        assert heard.error is None and heard.text == "ok" and sent[0]["messages"][0]["content"] == "half a pair \ud800"
    finally:
        router.close()


ROUTES = '[places.local]\n[places.cloud]\nwhere = "remote"\nurl = "{url}"\nprice_completion = 1e6\n[data]\nmay_leave = ["public"]\nunlabelled = "public"\n' \
    '[[rules]]\nname = "all"\nto = ["cloud"]\n[budget]\nper_tenant_per_day = {budget}\n'  # fmt: skip


def post(served, body=ASKED, **headers):
    return httpx.post(f"{served.url}/v1/chat/completions", headers={**served.headers, **headers}, json=body, timeout=30)


def test_a_reload_changes_the_budget_and_keeps_what_was_spent(tmp_path):
    file = tmp_path / "routes.toml"
    file.write_text(ROUTES.format(url="https://cloud.example/v1", budget=0))
    cloud = FakeGenerator()
    try:
        with serving(tmp_path, routes_file=file, remotes={"cloud": cloud}) as served:
            assert post(served, {**ASKED, "max_tokens": 5}).status_code == 403
            file.write_text(ROUTES.format(url="https://cloud.example/v1", budget=9))
            assert reload(served.gateway, served.gateway.settings)
            assert post(served, {**ASKED, "max_tokens": 5}).status_code == 200
            file.write_text(ROUTES.format(url="https://cloud.example/v1", budget=10))
            assert reload(served.gateway, served.gateway.settings)
            refused = post(served, {**ASKED, "max_tokens": 6})
            assert refused.status_code == 403 and "left today" in refused.json()["error"]["message"]
    finally:
        cloud.close()


def test_routes_that_come_with_a_reload_have_the_one_budget_of_the_gateway(tmp_path):
    file = tmp_path / "routes.toml"
    file.write_text('[places.local]\nprice_completion = 1e6\n[[rules]]\nname = "all"\nto = ["local"]\n[budget]\nper_tenant_per_day = 9\n')
    with serving(tmp_path, spent=tmp_path / "spent.json") as served:

        reload(served.gateway, replace(served.gateway.settings, routes=file))
        assert post(served, {**ASKED, "max_tokens": 5}).status_code == 200
        assert served.gateway.budget is not None and served.gateway.budget.spent("soc") == 5
        served.gateway.write_used()
        assert json.loads((tmp_path / "spent.json").read_text())["spent"] == {"soc": 5.0}


def test_a_reload_does_not_take_another_address_for_the_one_it_opened(tmp_path):
    """Text went on to the old address, with the old key, while receipts told of the new settings."""
    file = tmp_path / "routes.toml"
    file.write_text(ROUTES.format(url="https://cloud.example/v1", budget=9))
    cloud = FakeGenerator()
    try:
        with serving(tmp_path, routes_file=file, remotes={"cloud": cloud}) as served:
            before = served.gateway.policy
            file.write_text(ROUTES.format(url="https://elsewhere.example/v1", budget=9))
            with pytest.raises(StateError, match="cloud"):
                reload(served.gateway, served.gateway.settings)
            assert served.gateway.policy is before
    finally:
        cloud.close()


class Picky(FakeGenerator):
    """Does not take an adapter from a folder called broken."""

    def register(self, name, folder):
        if folder.name == "broken":
            raise DataError("that is no adapter", "give another")
        return super().register(name, folder)


@pytest.mark.parametrize("change", ["a broken adapter", "broken guards", "one name twice"])
def test_a_reload_that_is_refused_changes_nothing(tmp_path, change):
    guards = tmp_path / "guards.toml"
    first, second = Picky(), Picky()
    for name in ("triage", "notes"):
        first.register(name, tmp_path / name)
    old = {"triage": str(tmp_path / "triage"), "notes": str(tmp_path / "notes")}
    settings = ServeSettings(models={"one": ModelSettings("one", adapters=old), "two": ModelSettings("two")})
    with serving(tmp_path, fake=first, models=settings.models) as served:
        served.gateway.bases = {"one": first, "two": second}
        served.gateway.models.change(dict(served.gateway.bases))
        before = {target.name: target.card for target in served.gateway.models.all()}
        new, other = {"triage": str(tmp_path / "other"), "fresh": str(tmp_path / "fresh")}, {}
        if change == "a broken adapter":
            new["notes"] = str(tmp_path / "broken")
        elif change == "broken guards":
            guards.write_text("[[rules]]\nname = 'x'\nregexes = ['(']\n")
        else:
            other = {"fresh": str(tmp_path / "fresh")}

        models = {"one": ModelSettings("one", adapters=new), "two": ModelSettings("two", adapters=other)}
        fresh = replace(served.gateway.settings, models=models, guards=guards if guards.exists() else None)
        with pytest.raises((ConfigError, DataError)):
            reload(served.gateway, fresh)
        served.gateway.models.refresh()
        assert {target.name: target.card for target in served.gateway.models.all()} == before
        assert served.gateway.settings.models["one"].adapters == old
    second.close()


def test_a_base_that_is_elsewhere_is_no_local_place(tmp_path):
    """Confidential text went to it under the name of "local"."""
    file = tmp_path / "routes.toml"
    file.write_text("[places.local]\n")
    away = {"big": ModelSettings("https://models.example/v1", remote_model="large")}
    with pytest.raises(ConfigError, match="big"):
        Policy.read(ServeSettings(models=away, routes=file))
    near = {"big": ModelSettings("http://127.0.0.1:9000/v1")}
    assert Policy.read(ServeSettings(models=near, routes=file)).routes is not None
    assert Policy.read(ServeSettings(models=away)).routes is None
    file.write_text('[places.local]\n[places.big]\nwhere = "local"\n')
    with pytest.raises(ConfigError, match="big"):
        Policy.read(ServeSettings(models={"small": ModelSettings("small"), **away}, routes=file))


def test_an_answer_from_elsewhere_does_not_say_that_it_is_local(tmp_path):
    with serving(tmp_path, models={"fake": ModelSettings("https://models.example/v1")}) as served:
        assert post(served).headers["x-bedplate-route"] == "fake (remote); no routes"


def test_a_question_is_written_down_as_was_promised_when_it_was_asked(tmp_path):
    """A reload in the middle of an answer wrote its text, while its receipt told of the policy that writes none."""
    fake = FakeGenerator(step_s=0.005)
    with serving(tmp_path, fake=fake, audit=tmp_path / "audit") as served:
        body = {**ASKED, "stream": True, "max_tokens": 200, "ignore_eos": True}
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", headers=served.headers, json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            reload(served.gateway, replace(served.gateway.settings, redact=RedactSettings(mode="none")))
            list(lines)
        post(served)
    answers = [one["body"] for path in (tmp_path / "audit").glob("audit-*") for one in map(json.loads, path.read_text().splitlines()) if one["kind"] == "answer"]
    assert ["text" in one["answer"] for one in answers] == [False, True]
    assert answers[0]["receipt"]["policies"]["redact"] != answers[1]["receipt"]["policies"]["redact"]
