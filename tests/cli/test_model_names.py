"""A fetched model is known by its name in every command; a folder of that name here comes first."""

import pytest

from bedplate.testing.bases import tiny_base


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "models").mkdir(parents=True)
    made = tiny_base(tmp_path / "made")
    made.rename(tmp_path / "home" / "models" / "tiny")
    return tmp_path


def test_a_name_is_a_fetched_model(run, fetched):
    assert run("generate", "tiny", "the", "--most-tokens", 3)[0] == 0
    (fetched / "a.txt").write_text("the river")
    assert run("embed", "tiny", fetched / "a.txt", "--out", fetched / "v.jsonl")[0] == 0


def test_a_folder_of_that_name_comes_first(run, fetched):
    (fetched / "tiny").mkdir()
    code, _, err = run("generate", "tiny", "the")
    assert code == 3 and "tiny" in err


def test_what_is_nowhere_is_an_error(run, fetched):
    code, _, err = run("generate", "tinny", "the")
    assert code == 3 and "tinny" in err
