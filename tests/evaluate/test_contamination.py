"""Contamination: examples that a corpus holds are found, all of them, and their scores taken out."""

import json

import numpy as np
import pytest

from bedplate.cli.app import main
from bedplate.core.run import Run
from bedplate.evaluate.contamination import look_for
from bedplate.evaluate.kinds import Example
from bedplate.testing.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "c", ("text", "image"), documents=30)


def documents(corpus, split):
    return [corpus.text(int(number)).split() for number in corpus.table("text", split).document]


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run", "evaluate") as opened:
        yield opened


def test_a_shared_run_is_found_and_nothing_else(corpus, run):
    long = next(words for words in documents(corpus, "train") if len(words) > 30)
    held_out = next(words for words in documents(corpus, "validation") if len(words) > 20)
    examples = [
        Example("inside", "unheard of " + " ".join(long[5:18]) + " so it goes"),
        Example("also inside", "another way in " + " ".join(long[5:18])),
        Example("twelve", "unheard of " + " ".join(long[5:17]) + " then it goes another way altogether"),
        Example("held out", " ".join(held_out[:15]) + " goes on"),
        Example("whole", " ".join(long[:9])),
        Example("short", " ".join(long[:5])),
        Example("answer", "which one is it", ("none at all", " ".join(long[3:17])), 1),
        Example("wrong answer", "which one is it", ("none at all of these eight words here", " ".join(long[3:17])), 0),
    ]
    found = look_for({"mine": examples, "other": examples[:1]}, corpus.folder, run)
    assert found.seen["mine"] == {"inside", "also inside", "whole", "answer"} and found.seen["other"] == {"inside"}
    assert found.too_short["mine"] == {"short"} and found.corpus == corpus.manifest.digest


def test_the_report_says_what_was_seen_and_how_the_rest_does(corpus, base_folder, tmp_path, lines, capsys):
    rng = np.random.default_rng(0)
    inside = [" ".join(words[:20]) for words in documents(corpus, "train") if len(words) > 25][:3]
    outside = [" ".join(rng.choice(["zinc", "moss", "kelp", "ash"], 20)) for _ in range(5)]
    lines(tmp_path / "t.jsonl", [{"text": text, "answer": "x"} for text in (*inside, *outside)])
    (tmp_path / "t.toml").write_text('kind = "continue"\nfile = "t.jsonl"\n')
    asked = ["evaluate", "run", str(base_folder), "--tasks", str(tmp_path / "t.toml"), "--to", str(tmp_path / "run")]
    main([*asked, "--corpus", str(corpus.folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    seen = told["tasks"]["t"]["contamination"]
    assert seen["seen"] == 3 and seen["ids"] == ["t/1", "t/2", "t/3"] and seen["scores_without"][0]["examples"] == 5
    assert told["conditions"]["corpus"] == corpus.manifest.digest
    main([*asked, "--corpus", str(corpus.folder), "--plain"])
    assert "3 of 8 examples share a run of 13 words" in capsys.readouterr().err
