"""The documents police themselves: nothing undocumented, nothing stale, nothing forbidden."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.cli import reference as docs
from bedplate.core import errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("path", docs.pages(), ids=lambda p: p.name)
def test_generated_pages_are_fresh(path):
    assert path.exists() and path.read_text() == docs.pages()[path], "run `make docs`"


def test_every_command_is_documented_with_every_argument():
    for name, line, function in docs.functions():
        assert line and function.__doc__, name
        told = docs.argument_help(function)
        for flag, _, _ in docs.parameters(function):
            key = flag.lstrip("-").replace("-", "_").lower()
            assert flag == "--set" or told.get(key), f"{name} {flag} has no help"


def test_every_setting_is_documented_and_reachable():
    reachable = set()

    def visit(cls):
        reachable.add(cls.__name__)
        for field in dataclasses.fields(cls):
            hint = docs.typing.get_type_hints(cls)[field.name]
            repeated = docs.table_of(hint)
            if dataclasses.is_dataclass(hint) or repeated:
                visit(repeated[0] if repeated else hint)

    for module, name, _ in docs.TOPICS:
        cls = getattr(docs.importlib.import_module(module), name)
        visit(cls)
        for key, _, what in docs.keys(cls):
            assert len(what) > 10, f"{name}: {key} has no text below it"
    for cls in docs.settings_classes():
        assert cls.__name__ in reachable or cls.__name__ == "LoaderSettings", f"{cls.__name__} is in no table of docs/settings.md"


def test_exit_codes_differ():
    codes = [cls.exit_code for cls in errors.BedplateError.__subclasses__()]
    assert len(set(codes)) == len(codes) == 7


def test_help_is_light():
    program = "import sys; from bedplate.cli.app import main\ntry:\n main()\nexcept SystemExit: pass\nprint([m for m in ('torch','pyarrow','matplotlib','numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]") and "pretrain" in done.stdout + done.stderr


def test_imports_run_one_way():
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_no_pickle_no_eval_no_exec():
    forbidden_modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & forbidden_modules, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "torch.save", "np.load", "numpy.load"), f"{path}: {called}"


def test_files_hold_one_idea():
    long = {p.relative_to(ROOT).as_posix(): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, long


def test_local_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_tables_from_records_are_fresh():
    sys.path.insert(0, str(ROOT))
    from benchmarks import adaptation_page, tables

    assert (ROOT / "docs" / "adaptation.md").read_text() == adaptation_page.page(), "run `make docs`"
    assert (ROOT / "docs" / "benchmarks.md").read_text() == tables.all_tables(), "run `make docs`"
    readme = (ROOT / "README.md").read_text()
    assert readme == tables.with_table(readme), "run `make docs`"


def test_records_have_the_agreed_form():
    for path in (ROOT / "benchmarks" / "results").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert set(record) == {"case", "date", "commit", "device", "versions", "conditions", "metrics"} and record["case"] == path.stem
            for metric in record["metrics"].values():
                assert set(metric) == {"median", "min", "max", "unit"} and metric["min"] <= metric["median"] <= metric["max"]
