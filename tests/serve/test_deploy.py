"""What stands in deploy/: examples that load, and machines that give the gateway no more than it needs."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from places import Heard, Place, said

from bedplate.core.config import load
from bedplate.core.generation import Ask, Turn
from bedplate.serve import guard_rules, routes
from bedplate.serve.router import Router

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXAMPLES = ("edge", "on-premises", "cloud", "hybrid")
MANIFESTS = [one for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_load(name):
    path = DEPLOY / "settings" / f"{name}.toml"
    assert path.read_text().startswith("# ")
    if importlib.util.find_spec("bedplate.serve.settings") is None:
        return
    from bedplate.serve.settings import ServeSettings

    settings = load(ServeSettings, path=path).value
    assert settings.keys is not None and settings.audit is not None and settings.models and settings.redact.mode != "none"
    assert settings.listen.loopback or settings.listen.certificate is not None or settings.listen.behind_tls, "text crosses no network in the clear"
    for file in (settings.guards, settings.routes):
        assert file is None or (DEPLOY / "settings" / file.name).is_file()
    if settings.oidc.issuer:
        assert "admin" in settings.oidc.scopes["operator"] and "admin" not in settings.oidc.scopes["analyst"]


def ask(text="hello", worker="", labels=()):
    return Ask(turns=(Turn.of("user", text),), worker=worker, labels=labels)


def test_the_hybrid_routes_do_as_they_say():
    settings = routes.read(DEPLOY / "settings" / "hybrid.routes.toml")
    local, partner = Place(said("I", " guess", *" so" * 30, logprob=-3.0)), Place(said("surely"))
    router = Router(settings, {"local": local, "partner": partner})

    def place_of(question, tokens=10):
        local.tokens = tokens
        return router.submit(question, Heard()).decision.place

    public = ("public",)
    assert place_of(ask(labels=public, worker="triage")) == "local"
    assert place_of(ask(labels=public), 7000) == "partner" and place_of(ask(), 7000) == "local"
    assert place_of(ask(labels=public)) == "partner", "unsure, and it may leave"
    asked = len(partner.asked)
    for stays in (ask(), ask(labels=("confidential",)), ask("mail jane.roe@corp-mail.io", labels=public), ask(labels=("unheard of",))):
        assert place_of(stays) == "local" == place_of(stays, 7000)
    assert len(partner.asked) == asked and partner.asked[0].worker == ""


def test_the_guards_do_as_they_say():
    settings = guard_rules.read(DEPLOY / "settings" / "guards.toml")
    (prompt,), (answer,) = guard_rules.rule_guards(settings, "prompt"), guard_rules.rule_guards(settings, "answer")
    assert prompt.check("see db1.corp.example").allowed and not answer.check("see db1.corp.example, please").allowed
    assert not prompt.check("tlp:red").allowed and answer.check("tlp:amber, corp.example").allowed
    assert not answer.check("-----BEGIN PRIVATE KEY-----").allowed


def test_the_container():
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in lines.splitlines() if line and not line.startswith("#")]
    starts = [n for n, step in enumerate(steps) if step[0] == "FROM"]
    assert len(starts) == 2, "built in one stage, run in another"
    last = steps[starts[1] :]
    words = [step[0] for step in last]
    users = [step[1] for step in last if step[0] == "USER"]
    assert users == ["10001:10001"] and words.index("USER") < words.index("ENTRYPOINT")
    assert all(step[1].startswith("--from=build") for step in last if step[0] == "COPY"), "no sources in what runs"
    assert all(step[1].startswith("[") for step in last if step[0] in ("ENTRYPOINT", "CMD")) and "HEALTHCHECK" in words and ["STOPSIGNAL", "SIGTERM"] in last
    assert "ADD" not in [step[0] for step in steps] and not re.search(r"index-url|find-links|trusted-host|curl|wget|:latest|sudo", lines)
    for step in steps:
        for source in step[1].split()[:-1] if step[0] == "COPY" and "--from" not in step[1] else []:
            assert (DEPLOY.parent / source).exists(), source
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*", "nothing but what is named reaches the builder"


UNIT = {
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes", "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX", "RestrictNamespaces": "yes", "SystemCallArchitectures": "native", "UMask": "0077", "User": "bedplate",
    "LimitCORE": "0", "StateDirectoryMode": "0700", "Restart": "on-failure",
}  # fmt: skip


def test_the_unit():
    path = DEPLOY / "bedplate.service"
    said_ = [line.partition("=") for line in path.read_text().splitlines() if line and line[0] not in "#["]
    assert {key: value for key, _, value in said_ if key in UNIT} == UNIT
    assert int({key: value for key, _, value in said_}["TimeoutStopSec"]) > 60, "longer than answers have to end"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
        told = [line for line in done.stderr.splitlines() if path.name in line and "is not executable" not in line]
        assert not told, told
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("manifest", [one for one in MANIFESTS if one["kind"] != "Kustomization"], ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_fits_its_schema(manifest):
    for version in ("1.30", "1.34"):
        kubernetes_validate.validate(manifest, version, strict=True)


def of_kind(kind):
    return [one for one in MANIFESTS if one["kind"] == kind]


def test_the_pod_asks_for_nothing_more():
    (stateful,) = of_kind("StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001 and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False and pod["terminationGracePeriodSeconds"] > 60
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys() and not any("hostPath" in volume for volume in pod["volumes"])
    secure = container["securityContext"]
    assert secure == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys() and {"cpu", "memory"} <= container["resources"]["requests"].keys()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
    assert not container["image"].endswith(":latest") and ":" in container["image"]
    assert not any("secret" in str(one).lower() for one in container.get("env", [])), "secrets come as files"
    written = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"state", "scratch"}
    named = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == named
    modes = [volume[kind]["defaultMode"] for volume in pod["volumes"] for kind in ("secret", "configMap") if kind in volume]
    assert modes == [0o440, 0o440], "the gateway refuses keys that others can read"


def test_what_belongs_together_fits_together():
    (stateful,), (service,) = of_kind("StatefulSet"), of_kind("Service")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels and stateful["spec"]["serviceName"] == service["metadata"]["name"]
    (namespace,), (list_,) = of_kind("Namespace"), of_kind("Kustomization")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert all(one["metadata"].get("namespace", "bedplate") == "bedplate" for one in MANIFESTS if "metadata" in one)
    assert all((DEPLOY / "kubernetes" / name).is_file() for name in list_["resources"])
    mounted = {mount["mountPath"] for mount in stateful["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    for path in re.findall(r'"(/[^"]+)"', (DEPLOY / "settings" / "cloud.toml").read_text()):
        assert any(path.startswith(f"{mount}/") for mount in mounted), path


def test_nothing_comes_in_or_goes_out_unasked():
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    gateway = policies["gateway"]
    assert all(rule["from"] and rule["ports"] == [{"port": 8400, "protocol": "TCP"}] for rule in gateway["ingress"])
    assert {port["port"] for rule in gateway["egress"] for port in rule["ports"]} == {53}
    (remote,) = policies["gateway-remote"]["egress"]
    assert [port["port"] for port in remote["ports"]] == [443] and "0.0.0.0/0" not in str(remote)
    assert "network-hybrid.yaml" not in of_kind("Kustomization")[0]["resources"], "who wants text to leave says so"
