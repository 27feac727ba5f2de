import json

import pytest

from bedplate.adapt.base import Base
from bedplate.testing.bases import tiny_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("other"), seed=7)


@pytest.fixture
def base(base_folder):
    return Base.load(base_folder)


@pytest.fixture
def lines():
    """Writes rows as JSONL."""

    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
