"""Makes `serve_gateway` and `places` importable; one gateway that a module's tests share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from serve_gateway import serving

    with serving(tmp_path_factory.mktemp("gateway"), audit=tmp_path_factory.mktemp("audit")) as made:
        yield made
