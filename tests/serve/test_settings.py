"""Settings of the gateway: what is refused, and what each one does."""

import pytest

from bedplate.core.config import load
from bedplate.core.errors import ConfigError
from bedplate.serve.settings import ListenSettings, ServeSettings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
def test_it_listens_on_other_addresses_only_with_keys(tmp_path, host):
    with pytest.raises(ConfigError) as caught:
        ServeSettings(listen=ListenSettings(host=host))
    assert "bedplate serve key add" in caught.value.hint
    assert ServeSettings(listen=ListenSettings(host=host), keys=tmp_path / "keys.json").listen.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_loopback_needs_none(host):
    assert ServeSettings(listen=ListenSettings(host=host)).listen.loopback


def test_a_whole_file_is_read_and_an_unknown_key_refused(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('keys = "keys.json"\nanswer_s = 30\n[listen]\nport = 9000\n[models.base]\npath = "models/base"\nadapters = {triage = "adapters/triage"}\n[limits.key]\nconcurrent = 3\n')
    settings = load(ServeSettings, path=file, overrides=["listen.host=localhost", "models.base.backend=llama.cpp"]).value
    assert settings.models["base"].adapters == {"triage": "adapters/triage"} and settings.models["base"].backend == "llama.cpp"
    assert (settings.answer_s, settings.listen.port, settings.listen.host, settings.limits.key.concurrent) == (30.0, 9000, "localhost", 3)
    file.write_text("[listen]\nprot = 9000\n")
    with pytest.raises(ConfigError) as caught:
        load(ServeSettings, path=file)
    assert "did you mean 'port'" in caught.value.hint


@pytest.mark.parametrize("wrong", [{"answer_tokens": 0}, {"inputs": 0}, {"choices": 0}, {"answer_s": 0.0}, {"session_s": 0.0}])
def test_amounts_that_allow_nothing_are_refused(wrong):
    with pytest.raises(ConfigError):
        ServeSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"headers_s": 0.0}, {"body_s": 0.0}, {"idle_s": 0.0}, {"stalled_s": 0.0}, {"drain_s": -1.0}, {"connections": 0}, {"kept_pieces": 0}])
def test_patience_that_allows_nothing_is_refused(wrong):
    with pytest.raises(ConfigError):
        ListenSettings(**wrong)


def test_tls_needs_both_files(tmp_path):
    with pytest.raises(ConfigError):
        ListenSettings(certificate=tmp_path / "cert.pem")
