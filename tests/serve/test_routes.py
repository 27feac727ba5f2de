"""Routes: who may be asked. What no label says may leave, does not leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError
from bedplate.core.generation import Ask, Form, Make, Part, Sampling, Tool, ToolCall, Turn
from bedplate.serve.routes import DataSettings, Decision, PlaceSettings, Refused, RouteSettings, RoutesSettings, UncertainSettings, classify, plan, read

CLOUD = PlaceSettings("remote", url="https://cloud.example/v1")
OPEN = DataSettings(may_leave=("public",), unlabelled="internal")
MAIL = "write to jane.roe@corp-mail.io"


def ask(text="hello", **more):
    return Ask(turns=(Turn.of("user", text),), **more)


def settings(*rules, data=OPEN, **places):
    return RoutesSettings(places={"local": PlaceSettings(), "cloud": CLOUD} | places, data=data, rules=rules)


def planned(asked, routes, tokens=10):
    return plan(asked, routes, lambda: tokens)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (ask(), "internal"),
        (ask(labels=("public",)), "public"),
        (ask(labels=("public", "internal")), "internal"),
        (ask(labels=("pubic",)), "confidential"),
        (ask(MAIL, labels=("public",)), "confidential"),
        (ask(labels=("public",), tools=(Tool("f", MAIL),)), "confidential"),
        (ask(labels=("public",), tools=(Tool("f", parameters={"description": MAIL}),)), "confidential"),
        (ask(labels=("public",), form=Form(choice=(MAIL, "x"))), "confidential"),
        (ask(labels=("public",), form=Form(schema={"title": MAIL})), "confidential"),
        (ask(labels=("public",), sampling=Sampling(stop=(MAIL,))), "confidential"),
        (Ask(turns=(Turn("assistant", (), (ToolCall("1", "f", MAIL),)),), labels=("public",)), "confidential"),
        (Ask(turns=(Turn("user", (Part("image", data=b"x"),)),), labels=("public",)), "confidential"),
        (Ask(prompt=(1, 2), labels=("public",)), "confidential"),
        (Ask(prompt=MAIL, labels=("public",)), "confidential"),
        (Ask(prompt="load", want="series", make=Make(known=b"1\n2\n"), labels=("public",)), "confidential"),
        (Ask(prompt="a river", want="image", labels=("public",)), "public"),
        (Ask(prompt="hello", labels=("public",)), "public"),
    ],
)
def test_the_most_sensitive_word_counts(asked, expected):
    assert classify(asked, OPEN).name == expected


def test_settings_of_data_have_their_effect():
    names = ("low", "high")
    data = DataSettings(classes=names, may_leave=("low",), unlabelled="low", personal="low", unreadable="low")
    assert classify(ask(MAIL), data).name == "low" and classify(Ask(prompt=(1,)), data).name == "low"
    assert classify(ask("from 8.8.8.8"), DataSettings(classes=names, unlabelled="low", personal="high", unreadable="low")).name == "low"
    strict = DataSettings(classes=names, unlabelled="low", personal="high", unreadable="low", without=())
    assert classify(ask("from 8.8.8.8"), strict) == ("high", "holds: ip address")
    assert classify(Ask(prompt=(1,)), DataSettings(classes=names, unlabelled="low", personal="low", unreadable="high")).name == "high"


def test_the_defaults_let_nothing_leave():
    defaults = RoutesSettings()
    assert planned(ask(labels=("public",)), defaults).places == ("local",) and not defaults.data.may_leave
    wanted = RoutesSettings(places={"cloud": CLOUD}, rules=(RouteSettings("all", ("cloud",)),))
    nobody = planned(ask(labels=("public",)), wanted)
    assert nobody.places == () and nobody.refused == (Refused("cloud", "public does not leave"),)


def test_the_first_rule_that_holds_decides():
    routes = settings(
        RouteSettings("triage", ("local",), workers=("triage",)),
        RouteSettings("long", ("cloud", "local"), from_tokens=100, below_tokens=1000),
        RouteSettings("theirs", ("other",), tenants=("them",)),
        RouteSettings("secret", ("other",), classes=("confidential",)),
        RouteSettings("rest", ("local", "cloud")),
        other=PlaceSettings(),
    )
    public = ("public",)
    assert planned(ask(worker="triage"), routes).rule == "triage"
    assert planned(ask(labels=public), routes, 100).places == ("cloud", "local") and planned(ask(labels=public), routes, 1000).rule == "rest"
    assert planned(ask(tenant="them"), routes).places == ("other",)
    assert planned(ask(labels=("confidential",)), routes).rule == "secret"
    last = planned(ask(), routes)
    assert last.rule == "rest" and last.places == ("local",) and last.refused == (Refused("cloud", "internal does not leave"),)
    assert planned(ask(), settings()).places == ("local",) and planned(ask(), settings()).rule == ""


def test_tokens_are_counted_only_where_a_rule_asks():
    counted = []
    count = lambda: counted.append(1) or 5  # noqa: E731
    plan(ask(), settings(RouteSettings("a", ("local",))), count)
    plan(ask(), settings(RouteSettings("a", ("local",), workers=("x",), from_tokens=3)), count)
    assert counted == []
    routes = settings(RouteSettings("a", ("local",), from_tokens=9), RouteSettings("b", ("local",), from_tokens=5))
    assert plan(ask(), routes, count).rule == "b" and counted == [1]


def test_an_escalation_does_not_leave_either():
    routes = settings(RouteSettings("a", ("local",), uncertain=UncertainSettings("cloud")))
    assert planned(ask(labels=("public",)), routes).uncertain.to == "cloud"
    assert planned(ask(labels=("confidential",)), routes).uncertain.to == ""


names = st.sampled_from(["a", "b", "c", "d"])
labels = st.lists(st.sampled_from(["public", "internal", "confidential", "secret", "", "Public"]), max_size=3).map(tuple)


@given(
    where=st.dictionaries(names, st.booleans(), min_size=1),
    may_leave=st.sets(st.sampled_from(["public", "internal"])),
    rules=st.lists(st.tuples(st.lists(names, min_size=1, max_size=4), st.none() | st.just(True), names), max_size=4),
    labels=labels,
    text=st.sampled_from(["hello", MAIL, "4539 1488 0343 6467"]),
    picture=st.booleans(),
    tokens=st.integers(0, 500),
)
def test_nothing_confidential_is_ever_planned_for_a_remote_place(where, may_leave, rules, labels, text, picture, tokens):
    places = {name: CLOUD if remote else PlaceSettings() for name, remote in where.items()}
    made = tuple(
        RouteSettings(f"r{n}", tuple(known), from_tokens=n * 50, uncertain=UncertainSettings(unsure if unsure in places else ""))
        for n, (to, _, unsure) in enumerate(rules)
        if (known := [name for name in to if name in places])
    )
    routes = RoutesSettings(places=places, data=DataSettings(may_leave=tuple(may_leave)), rules=made)
    parts = (Part("text", text), *([Part("image", data=b"x")] if picture else []))
    asked = Ask(turns=(Turn("user", parts),), labels=labels)
    found = planned(asked, routes, tokens)
    asks = {*found.places, *([found.uncertain.to] if found.uncertain.to else [])}
    if asks & routes.remote:
        assert found.data_class.name in may_leave and labels and set(labels) <= may_leave
        assert text == "hello" and not picture


def test_a_header_is_one_line_of_ascii():
    decision = Decision("clöud", "remote", "public", "rule x\r\nSet-Cookie: a", (Refused("local", "is busy"),))
    assert decision.header == "cl?ud (remote); class public; rule x??Set-Cookie: a; not local: is busy"
    assert len(Decision("x", "local", "c", "r" * 2000).header) == 500


TOML = """
[places.local]
[places.cloud]
where = "remote"
url = "https://cloud.example/v1"
key_file = "cloud.key"
price_prompt = 0.5
price_completion = 1.5
[data]
may_leave = ["public"]
[[rules]]
name = "long"
to = ["cloud", "local"]
from_tokens = 4000
uncertain = { to = "cloud", mean_logprob = -0.7, tokens = 16 }
[budget]
per_tenant_per_day = 2.5
tenants = { soc = 10.0 }
[breaker]
failures = 2
"""


def test_routes_toml(tmp_path):
    file = tmp_path / "routes.toml"
    file.write_text(TOML)
    routes = read(file)
    assert routes.remote == {"cloud"} and routes.rules[0].uncertain.tokens == 16 and routes.budget.of("soc") == 10.0 and routes.breaker.failures == 2
    assert routes.places["cloud"].cost(1_000_000, 2_000_000) == 3.5
    for old, new in (
        ('"cloud", "local"', '"clod"'),
        ('to = "cloud", m', 'to = "clod", m'),
        ("https://", "http://"),
        ('where = "remote"', 'where = "local"'),
        ('may_leave = ["public"]', 'may_leave = ["pubic"]'),
        ("price_prompt = 0.5", "price_prompt = -1.0"),
        ("from_tokens", "fom_tokens"),
        ("per_tenant_per_day = 2.5", "per_tenant_per_day = nan"),
        ('to = ["cloud", "local"]', "to = []"),
        ("from_tokens = 4000", 'classes = ["x"]'),
    ):
        assert old in TOML
        file.write_text(TOML.replace(old, new))
        with pytest.raises(ConfigError) as caught:
            read(file)
        assert caught.value.hint
    for wrong in ({"classes": ()}, {"classes": ("a", "a")}, {"without": ("x",)}):
        with pytest.raises(ConfigError):
            DataSettings(**({"unlabelled": "a", "personal": "a", "unreadable": "a"} | wrong))
    with pytest.raises(ConfigError):
        RoutesSettings(places={})
    assert PlaceSettings("remote", url="http://127.0.0.1:8000/v1").url


@given(at=st.integers(0, 700), put=st.sampled_from(["", "[", "]", '"', "=", "{", "}", "\n", "0", "-", "nan", "true", "[[rules]]\n", "é", "\x00", "[places.x]\n", "1e999"]), cut=st.integers(0, 12))
def test_a_mutated_file_is_an_error_of_ours_or_another_valid_file(tmp_path_factory, at, put, cut):
    file = tmp_path_factory.getbasetemp() / "fuzzed-routes.toml"
    at %= len(TOML)
    file.write_text(TOML[:at] + put + TOML[at + cut :])
    try:
        assert read(file).places
    except ConfigError as error:
        assert error.message
