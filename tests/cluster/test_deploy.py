"""The files of cluster/deploy. Ray's own loader reads the files of its launcher; KubeRay's API checks the manifests.

KubeRay's fields are those of the Go types from which its CRDs are generated: ray-operator/apis/ray/v1/
raycluster_types.go and rayjob_types.go, as documented in docs/reference/api.md at commit 0057210 of
ray-project/kuberay. ``authOptions`` exists since version 1.5.1. Fields of pods are those of Kubernetes' core/v1.
"""

from __future__ import annotations

import copy
import fnmatch
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private.util import prepare_config, validate_config

from ofmu.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))
IMAGE = "registry.example.com/ofmu"

RAY = next(
    line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
)

RESOURCES = {"requests": {str: str}, "limits": {str: str}}
POD = {
    "spec!": {
        "restartPolicy": ("Always", "OnFailure", "Never"),
        "nodeSelector": {str: str},
        "tolerations": [{"key": str, "operator": ("Exists", "Equal"), "value": str, "effect": str}],
        "containers!": [
            {
                "name!": str,
                "image!": str,
                "command": [str],
                "ports": [{"name": str, "containerPort!": int}],
                "env": [{"name!": str, "value": str, "valueFrom": {"secretKeyRef!": {"name": str, "key!": str}}}],
                "resources": RESOURCES,
                "volumeMounts": [{"name!": str, "mountPath!": str}],
            }
        ],
        "volumes": [
            {
                "name!": str,
                "persistentVolumeClaim": {"claimName!": str},
                "emptyDir": {"medium": str, "sizeLimit": str},
            }
        ],
    },
    "metadata": {"labels": {str: str}},
}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": ("disabled", "token")},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": ("v1", "v2"),
        "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": int,
    },
    "gcsFaultToleranceOptions": {
        "redisAddress!": str,
        "redisPassword": {"valueFrom": {"secretKeyRef!": {"name": str, "key!": str}}},
        "externalStorageNamespace": str,
    },
    "headGroupSpec!": {"rayStartParams!": {str: str}, "template!": POD},
    "workerGroupSpecs": [
        {
            "groupName!": str,
            "replicas": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "idleTimeoutSeconds": int,
            "rayStartParams!": {str: str},
            "template!": POD,
        }
    ],
}
JOB = {
    "entrypoint": str,
    "entrypointNumCpus": (int, float),
    "entrypointNumGpus": (int, float),
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "runtimeEnvYAML": str,
    "rayClusterSpec": CLUSTER,
}
CLAIM = {"accessModes": [str], "storageClassName": str, "resources": RESOURCES}
SERVICE = {"selector": {str: str}, "ports": [{"name": str, "port!": int}]}
DEPLOYMENT = {
    "replicas": int,
    "strategy": {"type": ("Recreate", "RollingUpdate")},
    "selector!": {"matchLabels": {str: str}},
    "template!": POD,
}
KINDS = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("v1", "PersistentVolumeClaim"): CLAIM,
    ("v1", "Service"): SERVICE,
    ("apps/v1", "Deployment"): DEPLOYMENT,
}
"""The fields of ``spec`` that our manifests use. ``!`` marks a required field; a tuple of strings lists the values."""


def problems(value: Any, shape: Any, place: str) -> Iterator[str]:
    """Yield one sentence for every place where ``value`` does not have the shape."""
    if isinstance(shape, Mapping) and str in shape:
        if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
            yield f"{place} must map strings to strings"
    elif isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            yield f"{place} must be a mapping"
            return
        known = {key.rstrip("!"): inner for key, inner in shape.items()}
        yield from (f"{place}.{key} is unknown" for key in value if key not in known)
        yield from (f"{place}.{key[:-1]} is missing" for key in shape if key.endswith("!") and key[:-1] not in value)
        for key in value:
            if key in known:
                yield from problems(value[key], known[key], f"{place}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place} must be a list"
            return
        for position, each in enumerate(value):
            yield from problems(each, shape[0], f"{place}[{position}]")
    elif isinstance(shape, tuple) and isinstance(shape[0], str):
        if value not in shape:
            yield f"{place} is {value!r}, not one of {shape}"
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        yield f"{place} has the type {type(value).__name__}"


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def manifest(name: str) -> dict[str, Any]:
    return documents(DEPLOY / "kuberay" / name)[-1]


def pods(spec: Mapping[str, Any]) -> dict[str, Any]:
    groups = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_manifests_have_the_fields_that_kuberay_and_kubernetes_know(path):
    for document in documents(path):
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", document["metadata"]["name"])
        shape = KINDS[document["apiVersion"], document["kind"]]
        assert list(problems(document["spec"], shape, document["kind"])) == []


@pytest.mark.parametrize(
    ("where", "value", "found"),
    [
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3, "workerGroupSpecs[0].maxReplica is unknown"),
        (("spec", "rayVersion"), 2.6, "rayVersion has the type float"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "rayStartParams must map strings to strings"),
        (("spec", "autoscalerOptions", "upscalingMode"), "Fast", "upscalingMode is 'Fast'"),
        (("spec", "headGroupSpec", "template"), {}, "template.spec is missing"),
    ],
)
def test_the_comparison_finds_wrong_fields(where, value, found):
    broken = copy.deepcopy(manifest("cluster.yaml"))
    at: Any = broken
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    assert any(found in problem for problem in problems(broken["spec"], CLUSTER, "RayCluster"))


def test_the_pods_of_the_cluster_have_image_storage_and_gpus():
    spec = manifest("cluster.yaml")["spec"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, pod in pods(spec).items():
        (container,) = pod["containers"]
        assert container["image"] == f"{IMAGE}:ray-{RAY}"
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == manifest("storage.yaml")["metadata"]["name"]
        if name != "head":
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    spot = next(group for group in spec["workerGroupSpecs"] if group["groupName"] == "spot")
    assert spot["minReplicas"] == 0 < spot["maxReplicas"]
    assert spot["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert manifest("storage.yaml")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_state_of_the_head_is_in_the_redis_that_is_deployed():
    options = manifest("cluster.yaml")["spec"]["gcsFaultToleranceOptions"]
    parts = {document["kind"]: document for document in documents(DEPLOY / "kuberay" / "redis.yaml")}
    service, pod = parts["Service"], parts["Deployment"]["spec"]["template"]
    port = service["spec"]["ports"][0]["port"]
    assert options["redisAddress"] == f"redis://{service['metadata']['name']}:{port}"
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    (password,) = pod["spec"]["containers"][0]["env"]
    assert password["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_the_job_has_the_same_cluster_and_its_entrypoint_is_a_search():
    job = manifest("job.yaml")["spec"]
    cluster = manifest("cluster.yaml")["spec"]
    assert job["rayClusterSpec"] == {key: cluster[key] for key in cluster if key != "gcsFaultToleranceOptions"}
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"PYTHONUNBUFFERED": "1"}}
    subprocess.run(["sh", "-n", "-c", job["entrypoint"]], check=True)
    lines = re.findall(r"python -m ofmu (search [^;]+)", job["entrypoint"])
    assert len(lines) == 2
    for line in lines:
        assert_accepted(shlex.split(line))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_rays_launcher_accepts_the_file(name):
    config = prepare_config(yaml.safe_load((DEPLOY / f"{name}.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert set(types) > {config["head_node_type"], "spot"}
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(each["max_workers"] for each in types.values()) == config["max_workers"]
    spot = types["spot"]["node_config"]
    if name == "aws":
        assert spot["InstanceMarketOptions"] == {"MarketType": "spot"}
    else:
        assert spot["scheduling"]["provisioningModel"] == "SPOT"
    assert types["spot"]["min_workers"] == 0 < types["spot"]["max_workers"]
    # By default the launcher installs a nightly wheel of Ray over the image's Ray.
    assert config["setup_commands"] == config["worker_setup_commands"] == []
    assert "ray" not in " ".join(config["head_setup_commands"])
    assert config["docker"]["image"] == f"{IMAGE}:ray-{RAY}"
    assert "-v /shared:/shared" in config["docker"]["run_options"]
    for command in config["initialization_commands"]:
        subprocess.run(["sh", "-n", "-c", command], check=True)


def test_rays_loader_finds_a_misspelt_key():
    config = yaml.safe_load((DEPLOY / "aws.yaml").read_text())
    config["available_node_types"]["spot"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and their arguments. Continued lines are joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]
    return [(name, argument) for name, argument in pairs]


def test_the_image_has_the_tested_versions():
    found = instructions()
    assert {name for name, _ in found} <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV"}
    name, base = found[0]
    version, python, platform = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d+)-(\w+)", base).groups()  # type: ignore[union-attr]
    assert (name, version, platform) == ("FROM", RAY, "gpu")
    least = re.search(r'requires-python = ">=(\d)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert least is not None
    assert (int(python[0]), int(python[1:])) >= tuple(int(part) for part in least.groups())
    installs = [argument for name, argument in found if name == "RUN"]
    assert [re.sub(r"^pip install .*-c constraints\.txt ", "", each) for each in installs] == ["torch", "."]


def test_the_image_gets_all_files_that_the_installation_reads():
    copied = [shlex.split(argument) for name, argument in instructions() if name == "COPY"]
    sources = {source for words in copied for source in words[:-1] if not source.startswith("--")}
    assert all((ROOT / source).exists() for source in sources)
    assert sources == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "ofmu", "tune", "cluster"}
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert allowed[0] == "*"
    assert sources == {line[1:] for line in allowed if line.startswith("!")}


def test_deployment_files_are_part_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    patterns = re.findall(r'"(deploy/[^"]+)"', text)
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    assert len(files) == 9
    for path in files:
        assert any(fnmatch.fnmatch(path.relative_to(DEPLOY.parent).as_posix(), pattern) for pattern in patterns)


def commands_in(text: str) -> Iterator[list[str]]:
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def assert_accepted(words: Sequence[str]) -> None:
    """Assert that ofmu's command line accepts these words. --help keeps the command from running."""
    assert words[0] in COMMANDS
    split = words.index("--") if "--" in words else len(words)
    result = CliRunner().invoke(cli, [*words[:split], "--help"])
    assert result.exit_code == 0, result.output
    options = set(re.findall(r"--[\w-]+", result.output))
    assert {word for word in words[:split] if word.startswith("--")} <= options
    if split < len(words):
        assert_accepted(words[split + 1 :])


def test_the_commands_of_the_readme_are_real():
    text = (DEPLOY / "README.md").read_text()
    ours = [words[1:] for words in commands_in(text) if words[0] == "ofmu"]
    assert len(ours) >= 6
    for words in ours:
        assert_accepted(words)
    for name in re.findall(r"cluster/deploy/[\w./-]+", text):
        assert (ROOT / name).exists()
    assert f"ray[default]=={RAY}" in text
    assert f"ofmu:ray-{RAY}" in text
