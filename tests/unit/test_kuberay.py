"""The KubeRay manifests against what the operator's API takes, and against our own settings.

The schema is written from the API reference of ray.io/v1 (https://ray-project.github.io/kuberay/reference/api/) and of
Kubernetes' core/v1: of each object the fields that may stand there by name, so that one with a slip in it fails, and
what must be there. Where the operator is not, this is all that can be checked: the manifests were not applied here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from headrace.core.config import load
from headrace.deploy.ray.plan import GPU_MEMORY, SPOT, TIER

FILE = Path(__file__).parents[2] / "examples" / "kuberay" / "headrace.yaml"
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}


def struct(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


KEY = struct("name key", name=TEXT, key=TEXT, optional={"type": "boolean"})
SOURCE = struct(
    secretKeyRef=KEY, configMapKeyRef=KEY, fieldRef=struct("fieldPath", fieldPath=TEXT), resourceFieldRef={}
)
VARIABLE = struct("name", name=TEXT, value=TEXT, valueFrom=SOURCE)
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
PROBE = struct(httpGet=struct("port", path=TEXT, port=PORT), periodSeconds=COUNT, initialDelaySeconds=COUNT)
CONTAINER = struct(
    "name image",
    name=TEXT,
    image=TEXT,
    command=several(TEXT),
    args=several(TEXT),
    env=several(VARIABLE),
    ports=several(struct("containerPort", name={"type": "string", "maxLength": 15}, containerPort=PORT)),
    resources=struct(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=several(struct("name mountPath", name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
)
VOLUME = struct(
    "name",
    name=TEXT,
    emptyDir=struct(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    persistentVolumeClaim=struct("claimName", claimName=TEXT),
    secret=struct("secretName", secretName=TEXT),
)
META = struct("name", name=TEXT, labels=TEXTS, annotations=TEXTS, namespace=TEXT)
TEMPLATE = struct(
    "spec",
    metadata=struct(labels=TEXTS, annotations=TEXTS),
    spec=struct(
        "containers", containers=several(CONTAINER), volumes=several(VOLUME), nodeSelector=TEXTS, tolerations={}
    ),
)
CREDENTIAL = struct(value=TEXT, valueFrom=SOURCE)
CLUSTER = struct(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    gcsFaultToleranceOptions=struct(
        "redisAddress",
        redisAddress=TEXT,
        redisUsername=CREDENTIAL,
        redisPassword=CREDENTIAL,
        externalStorageNamespace=TEXT,
    ),
    headGroupSpec=struct("template", rayStartParams=TEXTS, serviceType=TEXT, template=TEMPLATE),
    workerGroupSpecs=several(
        struct(
            "groupName template maxReplicas minReplicas",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
SELECTOR = struct("matchLabels", matchLabels=TEXTS)
SPECS = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("v1", "Service"): struct(
        "selector ports",
        selector=TEXTS,
        ports=several(struct("port", name=TEXT, port=PORT, targetPort={})),
        type={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    ),
    ("v1", "PersistentVolumeClaim"): struct(
        "accessModes resources",
        accessModes=several({"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"]}),
        resources=struct("requests", requests=QUANTITIES),
        storageClassName=TEXT,
    ),
    ("networking.k8s.io/v1", "NetworkPolicy"): struct(
        "podSelector",
        podSelector=SELECTOR,
        policyTypes=several({"enum": ["Ingress", "Egress"]}),
        ingress=several(struct(**{"from": several(struct(podSelector=SELECTOR)), "ports": several(struct(port=PORT))})),
    ),
}
DOCUMENTS = list(yaml.safe_load_all(FILE.read_text()))


def test_every_object_is_one_that_kubernetes_and_the_operator_take() -> None:
    for document in DOCUMENTS:
        spec = SPECS[document["apiVersion"], document["kind"]]
        whole = struct("apiVersion kind metadata spec", apiVersion=TEXT, kind=TEXT, metadata=META, spec=spec)
        jsonschema.validate(document, whole)


def test_the_schema_finds_a_slip() -> None:
    cluster = yaml.safe_load(FILE.read_text().split("\n---\n")[0].replace("minReplicas: 2", "minReplica: 2"))
    try:
        jsonschema.validate(cluster["spec"], CLUSTER)
    except jsonschema.ValidationError as error:
        assert "minReplica" in error.message
    else:
        raise AssertionError("it did not")


def test_names_within_the_manifests_meet() -> None:
    cluster = DOCUMENTS[0]
    name = cluster["metadata"]["name"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    claims = {d["metadata"]["name"] for d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
        for volume in pod.get("volumes", []):
            assert "persistentVolumeClaim" not in volume or volume["persistentVolumeClaim"]["claimName"] in claims
    front = next(group for group in groups if group.get("groupName") == "front")
    service = next(d for d in DOCUMENTS if d["kind"] == "Service")
    assert service["spec"]["selector"].items() <= front["template"]["metadata"]["labels"].items()
    policy = next(d for d in DOCUMENTS if d["kind"] == "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": name}
    # Ray finds its own node by files below /tmp/ray, and shares memory with it.
    ray, ours = front["template"]["spec"]["containers"]
    assert {m["mountPath"] for m in ray["volumeMounts"]} == {"/tmp/ray", "/dev/shm"}
    assert {m["mountPath"] for m in ray["volumeMounts"]} < {m["mountPath"] for m in ours["volumeMounts"]}


def test_the_settings_are_ours_and_the_labels_those_that_we_read() -> None:
    front = next(g for g in DOCUMENTS[0]["spec"]["workerGroupSpecs"] if g["groupName"] == "front")
    ours = front["template"]["spec"]["containers"][1]
    given = {one["name"]: one.get("value", "10.0.0.1") for one in ours["env"] if one["name"].startswith("HEADRACE_")}
    settings = load(None, given).settings
    assert (settings.fleet, settings.fleet_host) == ("ray", "10.0.0.1")
    assert settings.ray_address == f"{DOCUMENTS[0]['metadata']['name']}-head-svc:6379"
    ports = {port["containerPort"] for port in ours["ports"]}
    assert ports == {settings.http_port, settings.grpc_port, settings.control_port, settings.fleet_port}
    labels = [g["rayStartParams"].get("labels", "") for g in DOCUMENTS[0]["spec"]["workerGroupSpecs"]]
    used = {name for text in labels for name in re.findall(r"([\w.-]+)=", text)}
    assert used == {TIER, SPOT, GPU_MEMORY}
