"""A gateway over the fake generator, on a real port of this machine."""

import asyncio
import threading
from contextlib import contextmanager

from bedplate.serve import keys
from bedplate.serve.gateway import ROUTES, Gateway, create_app
from bedplate.serve.listen import Server, bind
from bedplate.serve.settings import ListenSettings, ServeSettings
from bedplate.testing.generators import FakeGenerator

USER = ("generate", "embed", "classify", "predict", "rerank", "transcribe", "models", "receipts")


class Served:
    """A running gateway: its address, its key, and what is behind it."""

    def __init__(self, gateway, fake, url, key, server):
        self.gateway, self.fake, self.url, self.key, self.server = gateway, fake, url, key, server

    @property
    def headers(self):
        return {"authorization": f"Bearer {self.key}"}


@contextmanager
def serving(folder, fake=None, scopes=USER, table=ROUTES, listen=None, remotes=None, routes_file=None, close=True, name="fake", **changes):
    """A gateway in a thread of its own; ended at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    made = keys.add(folder / "keys.json", name="tests", tenant="soc", scopes=scopes)
    fake = fake or FakeGenerator(workers=("triage",), predictors={"sorter": "classify", "finder": "embed", "meter": "regress", "marker": "extract", "ranker": "rank"})
    settings = ServeSettings(**{"keys": folder / "keys.json", "listen": ListenSettings(port=0, **(listen or {})), "routes": routes_file, **changes})
    gateway = Gateway(settings, {name: fake}, remotes)
    ready = threading.Event()
    address = []
    server = Server(gateway, create_app(gateway, table), lambda url: (address.append(url), ready.set()))
    listener = bind(settings.listen)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield Served(gateway, fake, address[0], made.secret, server)
    finally:
        server.should_exit = True
        thread.join(20)
        if close:
            fake.close()
        assert not thread.is_alive()
