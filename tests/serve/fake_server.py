"""A gateway over the fake generator as a process of its own: `fake_server.py SETTINGS.toml STEP_S`. Prints its address."""

import sys
from pathlib import Path

from bedplate.core.config import load
from bedplate.serve.gateway import Gateway, create_app
from bedplate.serve.listen import run
from bedplate.serve.settings import ServeSettings
from bedplate.testing.generators import FakeGenerator

if __name__ == "__main__":
    path = Path(sys.argv[1])
    settings = load(ServeSettings, path=path).value
    fake = FakeGenerator(step_s=float(sys.argv[2]))
    for name, folder in settings.models["fake"].adapters.items():
        fake.register(name, Path(folder))
    gateway = Gateway(settings, {"fake": fake})
    gateway.reread = lambda: load(ServeSettings, path=path).value
    run(gateway, create_app(gateway), lambda address: print(address, flush=True))
    fake.close()
    print("closed", flush=True)
