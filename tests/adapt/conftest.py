"""Makes `adaptations` importable; a base of every sense, and examples on disk."""

import json
import sys
from pathlib import Path

import pytest

from bedplate.adapt.base import Base
from bedplate.testing.bases import tiny_base
from bedplate.testing.corpora import tiny_specs

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A tiny model of every sense."""
    return tiny_base(tmp_path_factory.mktemp("base"), tiny_specs())


@pytest.fixture
def base(base_folder):
    return Base.load(base_folder)


@pytest.fixture
def jsonl(tmp_path):
    """Writes rows to a JSONL file."""

    def write(rows, name="examples.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
