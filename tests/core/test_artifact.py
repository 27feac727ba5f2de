"""Artifacts: complete or nothing, tampering seen, newer formats refused by name, older ones migrated, the golden folder still read."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.core import artifact
from bedplate.core.artifact import FORMATS, Manifest, read_manifest, seal, verify
from bedplate.core.errors import BedplateError, DataError, IntegrityError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path):
    """A sealed folder of two files, one deep."""
    made = tmp_path / "report"
    (made / "deep").mkdir(parents=True)
    (made / "a.txt").write_text("first")
    (made / "deep" / "b.bin").write_bytes(bytes(range(256)))
    seal(made, "report", parents={"model": "abc"}, settings={"seed": 1}, about={"documents": 3})
    return made


def test_a_sealed_folder_verifies_and_says_what_it_is(folder):
    manifest = verify(folder, "report")
    assert (manifest.kind, manifest.format, set(manifest.files)) == ("report", FORMATS["report"], {"a.txt", "deep/b.bin"})
    assert (manifest.parents, manifest.settings, manifest.about) == ({"model": "abc"}, {"seed": 1}, {"documents": 3})
    assert manifest.made_by.startswith("bedplate ")


def test_equal_results_have_equal_digests_and_others_do_not(folder, tmp_path):
    twin = shutil.copytree(folder, tmp_path / "twin")
    first = read_manifest(folder).digest
    assert seal(twin, "report", parents={"model": "abc"}, settings={"seed": 1}, about={"documents": 3}).digest == first
    assert seal(twin, "report", parents={"model": "abd"}, settings={"seed": 1}, about={"documents": 3}).digest != first


def tamper_byte(f):
    (f / "deep" / "b.bin").write_bytes(bytes(255) + b"x")


def add_file(f):
    (f / "deep" / "new.py").write_text("import os")


def hide_a_nested_manifest(f):
    (f / "deep" / "manifest.json").write_text("{}")


def replace_by_link(f):
    (f / "a.txt").rename(f.parent / "elsewhere.txt")
    (f / "a.txt").symlink_to(f.parent / "elsewhere.txt")


def link_a_folder(f):
    (f.parent / "other").mkdir()
    (f.parent / "other" / "evil.py").write_text("x")
    (f / "linked").symlink_to(f.parent / "other")


def edit_manifest(f):
    raw = json.loads((f / "manifest.json").read_text())
    raw["about"]["documents"] = 4
    (f / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "attack", [tamper_byte, add_file, hide_a_nested_manifest, link_a_folder, replace_by_link, edit_manifest, lambda f: (f / "a.txt").unlink()]
)
def test_every_change_is_seen(folder, attack):
    attack(folder)
    with pytest.raises(IntegrityError) as caught:
        verify(folder)
    assert caught.value.hint


def test_what_a_killed_writer_left_is_no_part_of_it(folder):
    (folder / ".a.txt.x1.tmp").write_text("half")
    verify(folder)


def test_a_newer_format_is_refused_by_name(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    raw |= {"format": FORMATS["report"] + 1, "made_by": "bedplate 9.9"}
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(IntegrityError) as caught:
        read_manifest(folder)
    assert f"format {FORMATS['report'] + 1}" in caught.value.message
    assert "bedplate 9.9" in caught.value.hint


def test_an_older_format_is_migrated_and_keeps_its_identity(folder, monkeypatch):
    before = read_manifest(folder).digest
    monkeypatch.setitem(FORMATS, "report", FORMATS["report"] + 2)
    old = FORMATS["report"] - 2
    rename = {("report", old): lambda raw: raw | {"format": old + 1, "about": {"texts": raw["about"]["documents"]}}}
    rename[("report", old + 1)] = lambda raw: raw | {"format": old + 2, "about": raw["about"] | {"kept": True}}
    monkeypatch.setattr(artifact, "MIGRATIONS", rename)
    manifest = verify(folder, "report")
    assert manifest.format == old + 2
    assert manifest.about == {"texts": 3, "kept": True}
    assert manifest.digest == before, "children name their parent by the digest it was sealed with"


def test_a_missing_migration_is_an_integrity_error(folder, monkeypatch):
    monkeypatch.setitem(FORMATS, "report", 99)
    with pytest.raises(IntegrityError):
        read_manifest(folder)


def test_a_folder_without_manifest_and_a_wrong_kind_say_so(folder, tmp_path):
    with pytest.raises(DataError) as caught:
        read_manifest(folder, "model")
    assert "is a report, not a model" in caught.value.message
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="manifest"):
        read_manifest(tmp_path / "empty")
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path / "nowhere")
    assert "no such folder" in caught.value.hint


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["kind", "format", "files", "parents", "settings", "about", "digest", "made_by", "more"]), JSON)
def test_any_manifest_is_read_or_refused(folder, field, value):
    raw = json.loads((folder / "manifest.json").read_text()) | {field: value}
    spoilt = folder.parent / "spoilt"
    spoilt.mkdir(exist_ok=True)
    (spoilt / "manifest.json").write_text(json.dumps(raw))
    try:
        verify(spoilt)
    except BedplateError:
        pass


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"\xff\xff", b'{"kind": "report", "kind": "model"}', b"null", b'{"digest": 1}'])
def test_damaged_manifests_are_refused(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(IntegrityError):
        read_manifest(tmp_path)


def test_a_name_that_climbs_out_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "a"
    folder.mkdir()
    manifest = Manifest("report", FORMATS["report"], {"../secret": artifact.sha256_file(tmp_path / "secret")})
    raw = {k: getattr(manifest, k) for k in ("kind", "format", "files", "parents", "settings", "about", "made_by", "made_at")}
    (folder / "manifest.json").write_text(json.dumps(raw | {"digest": manifest.digest}))
    with pytest.raises(IntegrityError):
        verify(folder)


def test_a_seal_that_cannot_be_written_leaves_no_manifest(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="JSON"):
        seal(folder, "report", about={"loss": float("nan")})
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("kept", sorted(GOLDEN.iterdir()) if GOLDEN.exists() else [], ids=lambda p: p.name)
def test_golden_folders_are_still_read(kept):
    kind, number = kept.name.rsplit("-", 1)
    manifest = verify(kept, kind)
    assert manifest.format == FORMATS[kind]
    assert int(number) <= FORMATS[kind]


def test_there_is_a_golden_report():
    assert (GOLDEN / "report-1" / "manifest.json").is_file()
    assert read_manifest(GOLDEN / "report-1").digest == json.loads((GOLDEN / "report-1" / "manifest.json").read_text())["digest"]


def test_a_model_that_is_not_there_is_looked_for_among_the_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="bedplate get` lists"):
        read_manifest(Path("smollm2"), "model")
    (tmp_path / "home" / "models" / "smollm2-135m").mkdir(parents=True)
    (tmp_path / "home" / "models" / "smollm2-135m" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="did you mean 'smollm2-135m'"):
        read_manifest(Path("smollm2"), "model")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="bedplate get hf` makes a model of it"):
        read_manifest(Path("hf"), "model")
