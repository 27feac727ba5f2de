"""A gateway over the fake generator, on a real port of this machine."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from bedplate.serve import keys
from bedplate.serve.gateway import Gateway, create_app
from bedplate.serve.settings import ServeSettings
from bedplate.testing.generators import FakeGenerator


class Served:
    """A running gateway: its address, its key, and what is behind it."""

    def __init__(self, gateway, fake, url, key):
        self.gateway, self.fake, self.url, self.key = gateway, fake, url, key

    @property
    def headers(self):
        return {"authorization": f"Bearer {self.key}"}


@contextmanager
def serving(folder, fake=None, scopes=("generate", "embed", "classify", "transcribe", "models", "receipts"), routes=None, **changes):
    """A gateway in a thread of its own; ended at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    made = keys.add(folder / "keys.json", name="tests", tenant="soc", scopes=scopes)
    fake = fake or FakeGenerator(workers=("triage",), classifiers=("sorter",), embedders=("finder",))
    gateway = Gateway(ServeSettings(**{"keys": folder / "keys.json", **changes}), {"fake": fake})
    app = create_app(gateway) if routes is None else create_app(gateway, routes)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield Served(gateway, fake, f"http://127.0.0.1:{listener.getsockname()[1]}", made.secret)
    finally:
        server.should_exit = True
        thread.join(20)
        fake.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gateway"), audit=tmp_path_factory.mktemp("audit")) as made:
        yield made
