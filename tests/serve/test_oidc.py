"""OIDC: only tokens of this provider, for us, valid now, signed as its keys are made for."""

import base64
import hashlib
import hmac
import http.server
import json
import threading

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from places import Clock

from bedplate.core.errors import ConfigError, DataError, PolicyError, RemoteError
from bedplate.serve.jwks import LARGEST_KEYS_BYTES, fetch_keys, read_keys
from bedplate.serve.oidc import Oidc, OidcSettings

ISSUER = "https://id.example"
NOW = 1_800_000_000.0
RSA = rsa.generate_private_key(65537, 2048)
KEYS = {"RS256": RSA, "ES256": ec.generate_private_key(ec.SECP256R1()), "EdDSA": ed25519.Ed25519PrivateKey.generate()}
ALGORITHMS = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm, "EdDSA": jwt.algorithms.OKPAlgorithm}


def public(algorithm, key=None, **more):
    return {**ALGORITHMS[algorithm].to_jwk((key or KEYS[algorithm]).public_key(), as_dict=True), "kid": algorithm} | more


def jwks(*keys):
    return json.dumps({"keys": list(keys) or [public(name) for name in KEYS]}).encode()


def claims(**changes):
    said = {"iss": ISSUER, "aud": "bedplate", "sub": "jane", "iat": NOW, "exp": NOW + 600, "tenant": "soc", "scope": "generate embed openid"}
    return {name: value for name, value in (said | changes).items() if value is not None}


def token(algorithm="RS256", key=None, headers=None, **changes):
    return jwt.encode(claims(**changes), key or KEYS[algorithm], algorithm, headers={"kid": algorithm} | (headers or {}))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks())
    return path


def oidc(file, clock=None, **more):
    return Oidc(OidcSettings(issuer=ISSUER, keys_file=file, **more), clock=clock or Clock(NOW))


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_good_token(file, algorithm):
    caller = oidc(file).identify(token(algorithm))
    assert caller.tenant == "soc" and caller.scopes == {"generate", "embed"} and caller.id.startswith("oidc-") and "jane" not in caller.id


def refused(file, text, match=None, **more):
    with pytest.raises(PolicyError, match=match):
        oidc(file, **more).identify(text)


def b64(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def handmade(header, body, signature=b""):
    head = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(body).encode())}"
    return f"{head}.{b64(signature(head.encode()) if callable(signature) else signature)}"


def test_no_signature_is_no_token(file):
    for name in ("none", "None", "NONE", "nOnE", "", None, 5):
        refused(file, handmade({"alg": name, "kid": "RS256"}, claims()))
    refused(file, handmade({"kid": "RS256"}, claims()))


def test_a_public_key_is_no_secret(file):
    """The old trick: HMAC with what everybody knows."""
    for encoding, form in (
        (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        (serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
        (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    ):
        secret = RSA.public_key().public_bytes(encoding, form)
        for name in ("HS256", "HS512"):
            digest = "sha256" if name == "HS256" else "sha512"
            refused(file, handmade({"alg": name, "kid": "RS256"}, claims(), lambda m, s=secret, d=digest: hmac.digest(s, m, d)), "signed in a way")
    for name in ("RS256", "ES256"):
        refused(file, handmade({"alg": name, "kid": "RS256"}, claims(), lambda m: hmac.digest(b"", m, "sha256")))


def test_the_key_says_which_algorithm_not_the_token(file):
    refused(file, token("ES256", headers={"kid": "RS256"}), "another algorithm")
    refused(file, token("RS256", headers={"kid": "EdDSA"}), "another algorithm")
    refused(file, jwt.encode(claims(), RSA, "PS256", headers={"kid": "RS256"}), "signed in a way")
    refused(file, jwt.encode(claims(), RSA, "RS512", headers={"kid": "RS256"}), "signed in a way")
    refused(file, token("RS256"), "signed in a way", algorithms=("ES256",))
    assert oidc(file, algorithms=("ES256",)).identify(token("ES256"))


def test_keys_in_the_token_count_for_nothing(file):
    mine = rsa.generate_private_key(65537, 2048)
    for extra in ({"jwk": public("RS256", mine)}, {"jku": "https://evil.example/jwks"}, {"x5u": "https://evil.example"}):
        refused(file, token("RS256", mine, extra), "does not hold")
    refused(file, token(headers={"crit": ["exp"]}))


@pytest.mark.parametrize(
    "changes",
    [{"iss": "https://id.example/"}, {"iss": None}, {"aud": "other"}, {"aud": None}, {"aud": ["a", "b"]}, {"sub": None}, {"exp": None}, {"iat": None}, {"tenant": None}, {"tenant": " "}, {"tenant": 5}, {"tenant": ["soc"]}, {"exp": NOW - 31}, {"exp": "tomorrow"}, {"exp": float("inf")}, {"exp": True}, {"nbf": NOW + 31}, {"nbf": "x"}, {"iat": NOW + 31, "exp": NOW + 60}, {"exp": NOW + 90_000}, {"sub": 5}],
)
def test_claims_that_do_not_hold(file, changes):
    refused(file, token(**changes))


def test_what_is_just_within(file):
    assert oidc(file).identify(token(exp=NOW - 29, iat=NOW - 600)) and oidc(file).identify(token(nbf=NOW + 29))
    assert oidc(file).identify(token(aud=["other", "bedplate"]))
    refused(file, token(exp=NOW - 29, iat=NOW - 600), "expired", leeway_s=0.0)
    refused(file, token(exp=NOW + 601), "valid for more", longest_s=600.0)


def test_a_changed_token(file):
    good = token()
    head, body, signature = good.split(".")
    other = b64(json.dumps(claims(tenant="them")).encode())
    for text in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}", good + ".", f"{head}.{body}.{signature[:-8]}AAAAAAAA", "", "a.b.c", "é.é.é", "." * 2, good + "=" * 20_000):
        refused(file, text)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: f"{b64(b)}.{b64(b)}.{b64(b)}") | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), st.none() | st.text() | st.integers() | st.just("RS256")).map(lambda h: handmade(h, claims(), b"x")))
def test_no_text_breaks_the_reader(text):
    path = test_no_text_breaks_the_reader.file
    with pytest.raises(PolicyError):
        oidc(path).identify(text)
    assert oidc(path).known(text) is None


@pytest.fixture(autouse=True)
def for_hypothesis(file):
    test_no_text_breaks_the_reader.file = file


def test_claims_become_tenant_scopes_and_labels(file):
    settings = {"tenant_claim": "org.unit", "scope_claim": "realm_access.roles", "scopes": {"llm-user": ("generate", "embed"), "llm-admin": ("admin",)}, "labels_claim": "data"}
    held = {"tenant": None, "scope": None, "org": {"unit": "ops"}, "realm_access": {"roles": ["llm-user", "generate", "admin", 5]}, "data": "internal"}
    caller = oidc(file, **settings).identify(token(**held))
    assert caller.tenant == "ops" and caller.scopes == {"generate", "embed"} and caller.labels == ("internal",)
    assert oidc(file).identify(token(scope="admin generate")).scopes == {"generate"}, "admin is given by name only"
    assert oidc(file, scopes={"boss": ("admin",)}).identify(token(scope="boss")).may("metrics")
    assert oidc(file).identify(token(scope=None)).scopes == frozenset()
    assert oidc(file, tenant_claim="https://x.example/org").identify(token(**{"https://x.example/org": "soc"})).tenant == "soc"


def test_two_people_two_callers(file):
    both = oidc(file)
    assert both.identify(token()).id == both.identify(token(scope="embed")).id != both.identify(token(sub="joe")).id


def test_tokens_seen_before_are_known_without_work_for_a_while(file):
    clock = Clock(NOW)
    seen = oidc(file, clock)
    good = token(exp=NOW + 40)
    assert seen.known(good) is None
    caller = seen.identify(good)
    assert seen.known(good) == caller and seen.known(good[:-1]) is None
    clock.at_s += 61
    assert seen.known(good) is None
    clock.at_s = NOW
    seen.identify(good)
    file.write_bytes(jwks(public("ES256")))
    with pytest.raises(PolicyError):
        seen.identify(token())
    assert seen.known(good) is None, "keys that were withdrawn take their tokens along"


def test_a_damaged_file_keeps_the_keys_before_it(file):
    kept = oidc(file)
    file.write_bytes(b"{")
    assert kept.identify(token())
    with pytest.raises(DataError):
        oidc(file)
    with pytest.raises(DataError):
        oidc(file.with_name("nowhere"))


class Provider:
    """Stands in for the address of the keys."""

    def __init__(self, data=None):
        self.data, self.asked = data if data is not None else jwks(), 0

    def __call__(self, address):
        self.asked += 1
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


def fetched(provider, clock, **more):
    return Oidc(OidcSettings(issuer=ISSUER, keys_url="https://id.example/jwks", **more), provider, clock)


def test_keys_are_fetched_when_needed_and_anew_after_a_while():
    provider, clock = Provider(), Clock(NOW)
    known = fetched(provider, clock, refetch_s=300.0)
    assert provider.asked == 0
    for _ in range(3):
        known.identify(token())
    assert provider.asked == 1
    clock.at_s += 300
    known.identify(token())
    assert provider.asked == 2


def test_a_new_key_is_understood_and_nobody_can_have_the_provider_flooded():
    provider, clock = Provider(jwks(public("ES256"))), Clock(NOW)
    known = fetched(provider, clock)
    known.identify(token("ES256"))
    for _ in range(50):
        with pytest.raises(PolicyError, match="does not list"):
            known.identify(token())
    assert provider.asked == 1
    provider.data = jwks()
    clock.at_s += 10
    assert known.identify(token()) and provider.asked == 2


def test_a_provider_that_is_down():
    provider, clock = Provider(OSError("refused")), Clock(NOW)
    known = fetched(provider, clock)
    with pytest.raises(RemoteError):
        known.identify(token())
    provider.data = jwks()
    clock.at_s += 10
    assert known.identify(token())
    provider.data = OSError("refused")
    clock.at_s += 300
    assert known.identify(token()), "the keys before it stay"


def test_one_fetch_for_many_at_once():
    class Slow(Provider):
        def __call__(self, address):
            gate.wait(20)
            return super().__call__(address)

    gate = threading.Event()
    provider = Slow()
    known = fetched(provider, Clock(NOW))
    found = []
    threads = [threading.Thread(target=lambda: found.append(known.identify(token()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(found) == 5 and provider.asked == 1


def test_which_keys_are_taken():
    small = public("RS256", rsa.generate_private_key(65537, 1024), kid="small")
    other = [{"kty": "RSA", "use": "enc", "kid": "e"}, {"kty": "EC", "crv": "P-384", "kid": "p"}, public("RS256", kid="ps") | {"alg": "PS256"}, small]
    assert set(read_keys(jwks(public("RS256"), *other), ("RS256", "ES256"))) == {"RS256"}
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}
    private = jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True) | {"kid": "p"}
    for wrong in ([secret], [public("RS256"), secret], [private], [public("RS256"), public("RS256")], [small], [{"kty": "RSA", "kid": "x"}], [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "x"}], [5]):
        with pytest.raises(DataError):
            read_keys(jwks(*wrong), ("RS256", "ES256", "EdDSA"))


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["keys", "kty", "n", "e", "x", "y", "crv", "kid", "RSA"]), x | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB"])), max_leaves=12).map(lambda v: json.dumps(v).encode()))
def test_no_bytes_break_the_reader_of_keys(data):
    try:
        read_keys(data, ("RS256", "ES256", "EdDSA"))
    except DataError:
        pass


def test_a_provider_with_one_unnamed_key():
    unnamed = {name: value for name, value in public("ES256").items() if name != "kid"}
    known = fetched(Provider(jwks(unnamed)), Clock(NOW))
    assert known.identify(jwt.encode(claims(), KEYS["ES256"], "ES256"))


def test_fetching_over_a_socket():
    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/jwks")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(jwks() if self.path == "/jwks" else b" " * (LARGEST_KEYS_BYTES + 1))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert Oidc(OidcSettings(issuer=ISSUER, keys_url=f"{base}/jwks"), clock=Clock(NOW)).identify(token())
        for wrong in ("/moved", "/large"):
            with pytest.raises(OSError):
                fetch_keys(base + wrong)
        server.shutdown()
    for wrong in ("http://id.example/jwks", "file:///etc/passwd", "ftp://x.example"):
        with pytest.raises(OSError):
            fetch_keys(wrong)


def test_settings(tmp_path):
    given_ = {"issuer": ISSUER, "keys_file": tmp_path / "x"}
    for wrong in ({"keys_url": "https://x.example"}, {"keys_file": None}, {"keys_file": None, "keys_url": "http://x.example"}, {"audience": ""}, {"leeway_s": -1.0}, {"refetch_s": 0.0}, {"longest_s": 0.0}, {"scopes": {"x": ("all",)}}, {"algorithms": ()}):
        with pytest.raises(ConfigError):
            OidcSettings(**(given_ | wrong))
    OidcSettings()
    assert hashlib.sha256(f"{ISSUER}\njane".encode()).hexdigest()[:16] in Oidc(OidcSettings(issuer=ISSUER, keys_url="https://x.example"), Provider(), Clock(NOW)).identify(token()).id
