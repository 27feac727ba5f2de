"""Every global name that a function reads exists. Linters cannot say so here: in jaxtyping's shapes, words in quotes are not names."""

import builtins
import dis
import importlib
from pathlib import Path
from types import CodeType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
MODULES = sorted(".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for path in SOURCE.rglob("*.py"))


def missing(code, known):
    """Global names that this code, or code within it, reads and nobody sets."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    set_here = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_NAME", "STORE_GLOBAL")}
    unknown = found - set_here - known
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            unknown |= missing(inner, known | set_here)
    return unknown


@pytest.mark.parametrize("name", MODULES)
def test_names_exist(name):
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    path = Path(module.__file__)
    known = set(vars(module)) | set(dir(builtins)) | {"__annotations__"}
    assert not missing(compile(path.read_text(), str(path), "exec"), known)


def test_a_name_that_nobody_sets_is_found():
    assert missing(compile("def f():\n    def g():\n        return nowhere\n    return g", "x", "exec"), set()) == {"nowhere"}
