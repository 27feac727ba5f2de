"""Fixtures shared by all tests."""

import signal
import sys
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


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A suite started in the background ignores Ctrl-C, and so would every program that it starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def ordinary_numbers():
    """A run flushes denormal numbers in its process; hypothesis cannot draw floats then."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
