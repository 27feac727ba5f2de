"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("bedplate", deadline=None)  # how long an example takes on a busy machine is no property
settings.load_profile("bedplate")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the repository; tests that use it skip where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("development data ../shared/data is not here")
    return folder
