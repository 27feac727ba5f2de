"""`bedplate data build` and `data inspect` as a user types them."""

import json

import pytest

from bedplate.data.corpus import Corpus


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"Story number {number} tells of a river, {number} boats and a bridge that nobody crosses in winter.\n")
    return folder


def test_build_and_inspect(tmp_path, run, raw):
    code, out, _ = run("data", "build", raw, "--to", tmp_path / "c", "--set", "workers=0", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["counts"]["kept"] == {"text": 4} and result["digest"] == Corpus.open(tmp_path / "c").manifest.digest
    code, out, _ = run("data", "inspect", tmp_path / "c", "--json")
    assert code == 0 and json.loads(out)["documents"] == 4 and (tmp_path / "c.html").stat().st_size > 5000
    code, out, _ = run("data", "inspect", tmp_path / "c", "--to", tmp_path / "other.html", "--plain")
    assert code == 0 and "4 documents" in out and (tmp_path / "other.html").exists()


def test_a_settings_file_and_a_tokenizer(tmp_path, run, raw):
    (tmp_path / "recipe.toml").write_text(f'inputs = ["{raw}"]\nworkers = 0\n[tokenizer]\nvocabulary = 300\n')
    code, _, err = run("data", "build", "--to", tmp_path / "c", "--settings", tmp_path / "recipe.toml", "--plain")
    assert code == 0 and "corpus in" in err and Corpus.open(tmp_path / "c").vocabulary == 300
    code, *_ = run("data", "build", raw, "--to", tmp_path / "d", "--tokenizer", tmp_path / "c", "--set", "workers=0")
    assert code == 0 and (tmp_path / "d" / "tokenizer.json").read_bytes() == (tmp_path / "c" / "tokenizer.json").read_bytes()


def test_errors_say_what_to_do(tmp_path, run, raw):
    code, _, err = run("data", "build", raw / "9.txt", "--to", tmp_path / "c")
    assert code == 3 and "hint:" in err
    code, _, err = run("data", "build", "--to", tmp_path / "c")
    assert code == 2 and "no sources" in err
    code, _, err = run("data", "inspect", raw)
    assert code == 3 and "hint:" in err
