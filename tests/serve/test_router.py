"""The router: confidential text reaches no remote place whatever fails; what fails is replaced while that is possible; and it says what it did."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Clock, Heard, Place, said

from bedplate.core.errors import ConfigError, PolicyError, RemoteError, ResourceError
from bedplate.core.generation import Ask, Piece, Sampling, Turn, Usage, stream
from bedplate.serve.breaker import BreakerSettings
from bedplate.serve.budget import BudgetSettings
from bedplate.serve.guard_rules import RuleGuard, RuleSettings
from bedplate.serve.guarded import Guarded, Guards
from bedplate.serve.router import Router
from bedplate.serve.routes import DataSettings, PlaceSettings, RouteSettings, RoutesSettings, UncertainSettings

CLOUD = PlaceSettings("remote", url="https://cloud.example/v1")
OPEN = DataSettings(may_leave=("public",), unlabelled="public")
GONE = RemoteError("the connection was refused")


def ask(text="hello", **more):
    return Ask(turns=(Turn.of("user", text),), **more)


def routed(places, *rules, kinds=None, clock=None, data=OPEN, **more):
    """A router over {name: Place}; names that begin with "cloud" are remote."""
    kinds = {name: CLOUD if name.startswith("cloud") else PlaceSettings() for name in places} | (kinds or {})
    rules = rules or (RouteSettings("all", tuple(places)),)
    return Router(RoutesSettings(places=kinds, rules=tuple(rules), data=data, **more), places, clock=clock or Clock(0))


def asked(router, question=None):
    heard = Heard()
    return heard, router.submit(question or ask(), heard)


def test_the_first_place_answers_and_the_decision_says_why():
    place = Place(said("a", "b"))
    router = routed({"local": place, "cloud": Place()})
    heard, ticket = asked(router, ask(tenant="soc", policy="p", labels=("public",)))
    assert heard.text == "ab" and heard[-1].usage == Usage(5, 0, 2)
    assert ticket.decision.header == "local (local); class public; rule all, labelled public"
    assert place.asked[0].tenant == "soc" and place.asked[0].policy == "p"


def test_a_remote_place_is_not_told_who_asks():
    cloud = Place()
    for worker, expected in (("big", ""), ("", "triage")):
        router = routed({"cloud": cloud}, kinds={"cloud": PlaceSettings("remote", worker=worker, url="https://x.example")})
        asked(router, ask(tenant="soc", policy="p", labels=("public",), worker="triage"))
        sent = cloud.asked[-1]
        assert (sent.tenant, sent.policy, sent.labels, sent.worker) == ("", "", (), expected)
    local = Place()
    asked(routed({"local": local}, kinds={"local": PlaceSettings(worker="other")}), ask(worker="triage"))
    assert local.asked[0].worker == "other"


@pytest.mark.parametrize("failure", [GONE, ResourceError("full"), ConfigError("too long"), RuntimeError("bug"), [GONE], [ResourceError("full")]])
def test_a_place_that_fails_before_it_answers_is_replaced(failure):
    router = routed({"first": Place(failure), "second": Place(said("ok"))})
    heard, ticket = asked(router)
    assert heard.text == "ok" and ticket.decision.place == "second" and ticket.decision.refused[0].place == "first"
    assert "the connection" not in ticket.decision.header, "what a remote says may quote the question"


def test_a_place_that_fails_after_something_left_is_not_replaced():
    second = Place()
    heard, ticket = asked(routed({"first": Place([Piece(text="half"), GONE]), "second": second}))
    assert heard.text == "half" and heard.error is GONE and not second.asked and ticket.decision.place == "first"


def test_where_all_fail_the_first_reason_is_told():
    with pytest.raises(ConfigError, match="too long"):
        asked(routed({"a": Place(ConfigError("too long")), "b": Place(GONE)}))
    heard, _ = asked(routed({"a": Place([GONE]), "b": Place(ConfigError("no"))}))
    assert heard.error is GONE and len(heard) == 1
    with pytest.raises(PolicyError, match="confidential does not leave"):
        asked(routed({"cloud": Place()}), ask(labels=("confidential",)))
    with pytest.raises(ResourceError, match="full"):
        asked(routed({"cloud": Place(), "local": Place(ResourceError("full"))}), ask(labels=("confidential",)))


failures = st.sampled_from([GONE, ResourceError("full"), ConfigError("long"), RuntimeError("bug"), [GONE], [Piece(text="x"), GONE], said("fine"), said("un", "sure", logprob=-5.0), said("sure", logprob=-0.1)])


@settings(max_examples=200)
@given(
    course=st.lists(st.tuples(st.lists(failures, min_size=4, max_size=4), st.sampled_from([(), ("public",), ("internal",), ("confidential",), ("?",)]), st.sampled_from(["hello", "mail jane.roe@corp-mail.io"]), st.integers(0, 40)), min_size=1, max_size=8),
    order=st.permutations(["cloud1", "local1", "cloud2", "local2"]),
    unsure=st.sampled_from(["", "cloud1", "local2"]),
    unlabelled=st.sampled_from(["public", "confidential"]),
)
def test_confidential_text_reaches_no_remote_place_whatever_fails(course, order, unsure, unlabelled):
    places = {name: Place() for name in ("cloud1", "local1", "cloud2", "local2")}
    clock = Clock(0)
    rule = RouteSettings("all", tuple(order), uncertain=UncertainSettings(unsure))
    router = routed(places, rule, clock=clock, data=DataSettings(may_leave=("public",), unlabelled=unlabelled), breaker=BreakerSettings(failures=2))
    for answers, labels, text, wait_s in course:
        clock.at_s += wait_s
        for place, answer in zip(places.values(), answers):
            place.answers = [answer]
        question = ask(text, labels=labels)
        heard = Heard()
        try:
            ticket = router.submit(question, heard)
            assert heard and heard[-1].last and sum(piece.last for piece in heard) == 1
            assert heard.error is not None or ticket.decision is not None
        except (ConfigError, PolicyError, ResourceError, RemoteError):
            assert not heard
        router.count(question)
        router.workers()
    for name in ("cloud1", "cloud2"):
        for sent in (*places[name].asked, *places[name].counted):
            assert "@" not in sent.turns[0].text
        assert not places[name].counted
    leaving = [labels for _, labels, text, _ in course if "@" not in text and (set(labels) == {"public"} or (not labels and unlabelled == "public"))]
    for name in ("cloud1", "cloud2"):
        assert len(places[name].asked) <= 2 * len(leaving)


def test_the_gate_itself_holds_even_if_a_plan_were_wrong():
    cloud = Place()
    router = routed({"cloud": cloud, "local": Place()})
    question = ask(labels=("confidential",))
    with pytest.raises(PolicyError, match="does not leave"):
        router.send("cloud", router.asked("cloud", question), question, Heard())
    assert not cloud.asked


def test_an_ill_place_rests_and_is_tried_again():
    clock = Clock(0)
    first, second = Place(GONE), Place()
    router = routed({"first": first, "second": second}, clock=clock, breaker=BreakerSettings(failures=2, open_s=30))
    for _ in range(5):
        asked(router)
    assert len(first.asked) == 2 and router.states() == {"first": "open", "second": "closed"}
    _, ticket = asked(router)
    assert "rests after failures" in ticket.decision.header
    clock.at_s = 30
    first.answers = [said("well again")]
    assert asked(router)[0].text == "well again" and router.states()["first"] == "closed"
    router = routed({"only": Place(GONE)}, clock=clock, breaker=BreakerSettings(failures=1, open_s=30))
    with pytest.raises(RemoteError):
        asked(router)
    with pytest.raises(ResourceError, match="rests") as caught:
        asked(router)
    assert "30 s" in caught.value.hint


def test_a_question_at_fault_or_a_full_place_is_no_illness():
    place = Place(ConfigError("too long"))
    router = routed({"first": place, "second": Place()}, breaker=BreakerSettings(failures=1))
    asked(router)
    place.answers = [ResourceError("full")]
    asked(router)
    place.answers = [said("x", finish="cancelled")]
    asked(router)
    for status in (400, 413, 422):
        refusal = RemoteError("the endpoint answered 400")
        refusal.status = status
        place.answers = [[refusal]]
        assert asked(router)[0].text == "ok"
    assert router.states()["first"] == "closed", "one tenant's malformed questions do not take a place away from all"
    for status in (500, 429, 401):
        router = routed({"first": place, "second": Place()}, breaker=BreakerSettings(failures=1))
        refusal.status = status
        asked(router)
        assert router.states()["first"] == "open"


PAID = PlaceSettings("remote", url="https://x.example", price_prompt=1e6, price_completion=1e6)


def test_the_budget_of_the_day_decides():
    cloud, local = Place(said("a", "b")), Place(said("local"))
    router = routed({"cloud": cloud, "local": local}, kinds={"cloud": PAID}, budget=BudgetSettings(per_tenant_per_day=30.0))
    question = ask(tenant="t", sampling=Sampling(max_tokens=10))
    heard, ticket = asked(router, question)
    assert heard.text == "ab" and ticket.decision.cost == 7.0 and router.budget.spent("t") == 7.0
    asked(router, question)
    heard, ticket = asked(router, question)  # 14 spent, 7 + 10 more could be too much
    assert heard.text == "local" and "budget is spent" in ticket.decision.header and router.budget.left("t") == 16.0
    assert asked(router, ask(tenant="u", sampling=Sampling(max_tokens=10)))[0].text == "ab"
    only = routed({"cloud": Place()}, kinds={"cloud": PAID})
    with pytest.raises(PolicyError, match="0 are left"):
        asked(only, question)


def test_what_failed_is_paid_only_where_something_came():
    router = routed({"cloud": Place([GONE]), "local": Place()}, kinds={"cloud": PAID}, budget=BudgetSettings(per_tenant_per_day=100.0))
    question = ask(tenant="t", sampling=Sampling(max_tokens=10))
    asked(router, question)
    assert router.budget.left("t") == 100.0
    router._places["cloud"].answers = [[Piece(text="x"), GONE]]
    asked(router, question)
    assert router.budget.spent("t") == 17.0, "nobody knows what it cost: all that was set aside"


def unsure_rule(tokens=2):
    return RouteSettings("all", ("local",), uncertain=UncertainSettings("cloud", mean_logprob=-1.0, tokens=tokens))


@pytest.mark.parametrize("tokens", [1, 2, 0])
def test_an_unsure_answer_is_given_by_another_place(tokens):
    local, cloud = Place(said("I", " guess", " so", logprob=-2.0)), Place(said("surely"))
    heard, ticket = asked(routed({"local": local, "cloud": cloud}, unsure_rule(tokens)))
    assert heard.text == "surely" and "mean logprob -2.00 below -1" in ticket.decision.header and ticket.decision.place == "cloud"
    assert local.asked[0].sampling.logprobs == 0 and cloud.asked[0].sampling.logprobs is None


def test_a_sure_answer_streams_on_without_its_probabilities():
    local = Place(said("a", "b", "c", logprob=-0.1), by_hand=True)
    cloud = Place()
    heard, _ = asked(routed({"local": local, "cloud": cloud}, unsure_rule()))
    local.go(1)
    assert heard.text == "", "held until it is known how sure it is"
    local.go(1)
    assert heard.text == "ab" and not heard[-1].last
    local.go()
    assert heard.text == "abc" and not any(piece.logprobs for piece in heard) and not cloud.asked
    wanted, _ = asked(routed({"local": Place(said("a", logprob=-0.1)), "cloud": cloud}, unsure_rule()), ask(sampling=Sampling(logprobs=1)))
    assert wanted[0].logprobs


def test_an_unsure_answer_is_better_than_none():
    for cloud in (Place(GONE), Place([GONE]), Place(ResourceError("full"))):
        local = Place(said("I", " guess", logprob=-2.0))
        heard, ticket = asked(routed({"local": local, "cloud": cloud}, unsure_rule()))
        assert heard.text == "I guess" and heard[-1].last and ticket.decision.place == "local" and "nobody else answered" in ticket.decision.header


def test_the_unsure_place_goes_on_until_the_other_one_speaks():
    local, cloud = Place(said("a", "b", "c", "d", logprob=-2.0), by_hand=True), Place([GONE], by_hand=True)
    heard, _ = asked(routed({"local": local, "cloud": cloud}, unsure_rule()))
    local.go(3)
    assert len(cloud.asked) == 1 and heard == []
    cloud.go()
    assert heard.text == "abc"
    local.go()
    assert heard.text == "abcd" and heard[-1].last
    local, cloud = Place(said("a", "b", "c", logprob=-2.0), by_hand=True), Place(said("sure", "ly"), by_hand=True)
    heard, _ = asked(routed({"local": local, "cloud": cloud}, unsure_rule()))
    local.go(2)
    cloud.go(1)
    assert local.tickets[0].cancelled and heard.text == "sure"
    local.go()
    cloud.go()
    assert heard.text == "surely"


def test_confidential_is_not_escalated():
    cloud = Place()
    heard, _ = asked(routed({"local": Place(said("I", " guess", logprob=-9.0)), "cloud": cloud}, unsure_rule()), ask(labels=("confidential",)))
    assert heard.text == "I guess" and not cloud.asked


def test_cancelling_reaches_whoever_is_at_work():
    local, cloud = Place(said("a", "b", "c", logprob=-2.0), by_hand=True), Place(by_hand=True)
    heard, ticket = asked(routed({"local": local, "cloud": cloud}, unsure_rule()))
    local.go(2)
    ticket.cancel()
    assert local.tickets[0].cancelled and cloud.tickets[0].cancelled
    first, second = Place([GONE], by_hand=True), Place()
    heard, ticket = asked(routed({"first": first, "second": second}))
    ticket.cancel()
    first.go()
    assert heard.error is GONE and not second.asked, "nobody waits any more: nobody else is asked"


def test_a_place_that_fails_when_nobody_listens_any_more_gives_its_turn_back():
    clock = Clock(0)
    local, cloud = Place([GONE]), Place(said("sure", "ly"), by_hand=True)
    router = routed({"local": local, "cloud": cloud}, unsure_rule(), clock=clock, breaker=BreakerSettings(failures=1, open_s=1))
    with pytest.raises(BaseException):
        raise asked(router)[0].error
    clock.at_s = 1
    local.by_hand, local.answers = True, [[*said("a", "b", "c", logprob=-2.0)[:2], GONE]]
    asked(router)
    local.go(2)
    cloud.go(1)
    local.go()
    clock.at_s = 2
    assert router.breakers["local"].enter() is not None


def test_the_deadline_runs_on():
    clock = Clock(0)
    first, second = Place([GONE], by_hand=True), Place()
    asked(routed({"first": first, "second": second}, clock=clock), ask(deadline_s=10.0))
    clock.at_s = 4
    first.go()
    assert first.asked[0].deadline_s == 10.0 and second.asked[0].deadline_s == 6.0


def test_pieces_from_threads_of_their_own():
    class Threaded(Place):
        def submit(self, ask, deliver):
            ticket = super().submit(ask, lambda piece: None)
            pieces = self.answers[0]
            threading.Thread(target=lambda: [deliver(p if isinstance(p, Piece) else Piece(finish="error", error=p)) for p in pieces]).start()
            return ticket

    for _ in range(20):
        router = routed({"a": Threaded([GONE]), "local": Threaded(said(*"unsure", logprob=-3.0)), "cloud": Threaded(said(*"answer"))}, RouteSettings("all", ("a", "local"), uncertain=UncertainSettings("cloud", tokens=3)))
        assert "".join(piece.text for piece in stream(router, ask())) == "answer"


@pytest.mark.parametrize("cloud", [said("no secret ", "word", " here"), said("the pass", "word"), [GONE]])
def test_guards_stand_before_and_behind_the_whole_router(cloud):
    """Whoever answers in the end: what was asked was checked, and so is what is said."""
    guard = RuleGuard([RuleSettings("words", literals=("password",))])
    places = {"cloud": Place(cloud), "local": Place(said("is it pass", "word?"))}
    generator = Guarded(routed(places), Guards((guard,), (guard,)))
    with pytest.raises(PolicyError):
        generator.submit(ask("tell me the Password"), Heard())
    assert not places["cloud"].asked
    heard = Heard()
    ticket = generator.submit(ask(), heard)
    assert "password" not in heard.text and ticket.inner.decision.place == ("local" if cloud == [GONE] else "cloud")
    assert heard[-1].usage is not None and [p.finish for p in heard if p.finish] == ["stop" if "secret" in heard.text else "guard"]


def test_counting_stays_in_the_house():
    local, cloud = Place(tokens=11), Place()
    assert routed({"cloud": cloud, "local": local}).count(ask()) == 11 and not cloud.counted
    assert routed({"cloud": cloud}).count(ask("x" * 299)) == 100 and not cloud.counted


def test_workers_load_and_closing():
    places = {"a": Place(name="x"), "b": Place(name="y"), "c": Place(name="x"), "cloud": Place(name="z")}
    router = routed(places)
    assert [card.name for card in router.workers()] == ["x", "y"] and router.load().running == 3 and router.load().counters == {"steps": 9.0}
    assert [card.name for card in routed({"cloud": Place(name="z")}).workers()] == ["z"]
    router.close()
    assert all(place.closed for place in places.values())


def test_places_and_settings_must_fit():
    for places in ({}, {"local": Place(), "more": Place()}):
        with pytest.raises(ConfigError, match="but not both"):
            Router(RoutesSettings(), places)
