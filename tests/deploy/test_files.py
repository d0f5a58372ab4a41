"""Files of deploy/ against their schemas, and against each other: what one names, another has."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from resources.home import PROJECT
from resources.pools import load_pools

DEPLOY = PROJECT / "deploy"
KUBERNETES = "1.31"
PODS = ("raycluster.yaml", "rayjob.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def cluster_of(name: str) -> dict[str, Any]:
    (document,) = documents(f"kubernetes/{name}")
    spec = document["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


@pytest.mark.parametrize("document", documents("kubernetes/platform.yaml"), ids=lambda one: one["kind"])
def test_a_manifest_is_what_kubernetes_takes(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_the_pods_of_ray_are_what_kubernetes_takes(name: str) -> None:
    import kubernetes_validate

    cluster = cluster_of(name)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}} | group["template"]
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_schema_refuses_what_is_misspelled() -> None:
    import kubernetes_validate

    document = documents("kubernetes/platform.yaml")[0] | {"automountToken": False}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_ray_manifests_have_no_field_that_dagster_ray_does_not_know() -> None:
    from dagster_ray.kuberay.configs import RayClusterSpec, RayJobSpec

    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(word.capitalize() for word in rest)

    known = {camel(name) for name in RayClusterSpec.model_fields} | {"authOptions", "rayVersion"}
    assert set(cluster_of("raycluster.yaml")) <= known
    assert set(cluster_of("rayjob.yaml")) <= known
    job = {camel(name) for name in RayJobSpec.model_fields} | {"entrypoint"}
    assert set(documents("kubernetes/rayjob.yaml")[0]["spec"]) <= job


def test_a_ray_worker_is_a_node_of_the_pool_of_whole_nodes() -> None:
    pool = load_pools()["h100_node"]
    assert pool.kubernetes is not None
    for name in PODS:
        (group,) = cluster_of(name)["workerGroupSpecs"]
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(pool.gpus_per_slot)
        assert spec["nodeSelector"] == pool.kubernetes.node_selector
        assert [dict(each) for each in spec["tolerations"]] == pool.kubernetes.tolerations


def test_the_compose_file_names_what_there_is_and_holds_no_password() -> None:
    text = (DEPLOY / "docker-compose.yaml").read_text(encoding="utf-8")
    compose = yaml.safe_load(text)
    services = compose["services"]
    assert set(services) == {"postgres", "mlflow", "code", "webserver", "daemon"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        volumes = [str(mount).split(":")[0] for mount in service.get("volumes", [])]
        assert all(name in compose["volumes"] or (DEPLOY / name).exists() for name in volumes)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")  # nothing here asks who comes
    example = (DEPLOY / "environment.example").read_text(encoding="utf-8")
    offered = set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+):\?", text)) <= offered
    assert re.search(r"(?i)(password|token|secret\w*): (?!\$\{|\*)\S", text) is None


def test_the_image_has_every_folder_of_the_package() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    packages = {path.parent.name for path in PROJECT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= copied
    assert all((PROJECT / name).exists() for name in copied)


def test_the_charts_values_name_what_the_manifests_have_and_say_that_nobody_rendered_them() -> None:
    text = (DEPLOY / "helm-values.yaml").read_text(encoding="utf-8")
    assert "NOT RENDERED HERE" in text
    values = yaml.safe_load(text)
    accounts = {
        one["metadata"]["name"] for one in documents("kubernetes/platform.yaml") if one["kind"] == "ServiceAccount"
    }
    pod = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["podSpecConfig"]
    assert pod["serviceAccountName"] in accounts
    assert values["generatePostgresqlPasswordSecret"] is False
