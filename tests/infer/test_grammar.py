"""Whatever a model with random numbers says under a form is of that form when it ends by itself; hostile forms are refused in time."""

import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from bedplate.core.errors import BedplateError, ConfigError
from bedplate.core.generation import Form
from bedplate.data.tokenizer import Encoder
from bedplate.infer.grammar import DEEPEST, KEPT, Grammars
from bedplate.testing.corpora import tiny_tokenizer

ENCODER = Encoder(tiny_tokenizer().to_str())
VOCABULARY = ENCODER.size + 7
END = 0
GRAMMARS = Grammars(ENCODER, VOCABULARY, {END})


def allowed(constraint):
    words = np.zeros(-(-VOCABULARY // 32), np.int32)
    assert constraint.allow(words)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCABULARY])


def say(form, seed, most=400):
    """What numbers drawn at random say under a form: (text, whether it ended by itself)."""
    constraint, rng, said = GRAMMARS.constraint(form), np.random.default_rng(seed), []
    while len(said) < most:
        token = int(rng.choice(allowed(constraint)))
        if token == END:
            return ENCODER.decode(np.array(said, np.int64)), True
        assert constraint.kept(np.array([token, token, token])) >= 1
        constraint.advance(token)
        said.append(token)
        if constraint.ended:
            return ENCODER.decode(np.array(said, np.int64)), True
    return "", False


NAMES = st.sampled_from(["a", "b", "long name", "é"])
LEAVES = st.one_of(
    st.just({"type": "integer", "minimum": -5, "maximum": 120}), st.just({"type": "boolean"}), st.just({"type": "null"}),
    st.just({"type": "string", "maxLength": 5}), st.just({"enum": ["x", 1, None, "ü"]}), st.just({"const": {"a": [1, 2]}}), st.just({"type": "number"}),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}$"}),
)  # fmt: skip


def _objects(inner):
    return st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(
        lambda named: {"type": "object", "properties": named, "required": list(named), "additionalProperties": False}
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: _objects(inner) | inner.map(lambda one: {"type": "array", "items": one, "maxItems": 2}) | st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    max_leaves=5,
)


@given(SCHEMAS, st.integers(0, 2**32))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_what_ends_by_itself_is_valid(schema, seed):
    text, ended = say(Form(schema=schema), seed)
    if ended:
        Draft202012Validator(schema).validate(json.loads(text))


def test_most_answers_do_end():
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": False}
    said = [say(Form(schema=schema), seed) for seed in range(10)]
    assert all(ended for _, ended in said)
    assert {json.loads(text)["a"] for text, _ in said} == {"x", "yy"}


def test_any_object_a_pattern_and_a_choice():
    for seed in range(5):
        text, ended = say(Form(regex="(ab|cd){2}[0-9]"), seed)
        assert ended and len(text) == 5
        assert say(Form(choice=('say "yes"', "nein\n", "früh")), seed)[0] in ('say "yes"', "nein\n", "früh")
        text, ended = say(Form(json=True), seed, 2000)
        assert not ended or isinstance(json.loads(text), dict)


def test_a_draft_is_kept_as_far_as_it_may_be_said():
    constraint = GRAMMARS.constraint(Form(choice=("abc",)))
    ids = np.array([int(ENCODER.encode(letter)[0]) for letter in "abx"])
    assert constraint.kept(ids) == 2 and constraint.kept(ids[:0]) == 0 and not constraint.ended
    constraint.advance(int(ids[0]))
    assert constraint.kept(ids[1:]) == 1


def test_compiled_forms_are_kept_and_answers_do_not_meet():
    one, other = (GRAMMARS.constraint(Form(choice=("abc", "xyz"))) for _ in range(2))
    one.advance(int(ENCODER.encode("a")[0]))
    assert len(allowed(other)) > len(allowed(one))
    for number in range(KEPT + 9):
        GRAMMARS.constraint(Form(regex=f"a{{{number + 1}}}"))
    assert len(GRAMMARS._kept) == KEPT


DEEP = {"type": "integer"}
for _ in range(5000):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    "form",
    [
        Form(schema=DEEP),
        Form(schema={"enum": ["x" * 100] * 1000}),
        Form(schema={"type": "no such"}),
        Form(schema={"$ref": "http://models.example.org/schema"}),
        Form(schema={"$ref": "#/$defs/none"}),
        Form(schema={"a": float("nan")}),
        Form(schema={"a": object()}),
        Form(schema={"type": "string", "pattern": "(?=a)(b)\\1"}),
        Form(regex="("),
        Form(choice=("",)),
        Form(choice=tuple("x" * 90 + str(n) for n in range(5000))),
    ],
)
def test_hostile_forms_are_refused_in_words_and_in_time(form):
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        GRAMMARS.constraint(form)
    assert caught.value.hint and len(caught.value.message) < 400
    assert time.process_time() - started < 20  # not a speed, but an end


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9, "items": {}},
        {"type": "string", "minLength": 10**8},
        {"type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000})"},
        {"type": "string", "pattern": "(a|aa)" * 9_000},
        {"type": "string", "pattern": "((a{0,500}){0,500}){0,500}"},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"},
        {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^(a+)+$"}}},
        {"anyOf": [{"type": "string", "pattern": f"^(a|b){{{n}}}c"} for n in range(200)]},
        {"allOf": [{"type": "object", "properties": {f"p{n}": {"type": "integer", "minimum": n}}} for n in range(60)]},
    ],
)
def test_forms_that_cost_much_end_too(schema):
    """They may be refused at once or on the way; they never hang, and the process lives."""
    try:
        say(Form(schema=schema), 0, most=60)
    except BedplateError as error:
        assert error.hint


@given(st.dictionaries(st.sampled_from(["type", "enum", "anyOf", "items", "properties", "pattern", "$ref", "minLength", "required", "x-guidance"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6),
                       max_size=4))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
def test_any_schema_is_taken_or_refused_in_words(schema):
    try:
        say(Form(schema=schema), 1, most=10)
    except BedplateError as error:
        assert error.hint


def test_levels_are_counted():
    deep = {"type": "integer"}
    for _ in range(DEEPEST // 2 - 1):
        deep = {"type": "array", "items": deep}
    GRAMMARS.constraint(Form(schema=deep))
