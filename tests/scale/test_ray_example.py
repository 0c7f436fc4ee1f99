"""What can be checked of examples/kuberay/rayservice.yaml without Kubernetes.

Serve's own schema reads ``serveConfigV2``; it accepts keys that it does not know, which is why they are compared here.
The pod templates are validated as pods. That leaves KubeRay's own keys (``rayClusterConfig``, ``workerGroupSpecs``),
the image, and whether a cluster gives what the pods ask for: of these nothing is checked.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="ray[serve] is not installed here")
pytest.importorskip("yaml", reason="PyYAML is not installed here")

import yaml
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from fastpipe.scale.ray import application, deployment

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "kuberay" / "rayservice.yaml"

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def service() -> Any:
    return yaml.safe_load(EXAMPLE.read_text())


def test_serve_reads_the_applications_and_knows_all_keys(service: Any) -> None:
    """A misspelt key would be left out silently."""
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    read = ServeDeploySchema(**config)
    assert [each.import_path for each in read.applications] == ["fastpipe.scale.ray:application"]
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    for each in config["applications"]:
        assert each.keys() <= ServeApplicationSchema.model_fields.keys()


def test_the_application_is_made_of_its_arguments(service: Any) -> None:
    """What is no argument of ``deployment`` or of Serve's is a TypeError."""
    (config,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    deployed = application(config["args"])._bound_deployment
    assert deployed.init_args == (["/app/gpu.toml", "/app/gpu.toml"],)
    assert deployed.ray_actor_options["num_gpus"] == 1
    assert deployed._deployment_config.autoscaling_config.policy.policy_kwargs == {"target_load": 1.0}
    named = {*inspect.signature(deployment).parameters, "pipeline"}
    assert {"num_gpus", "timeout", "autoscaling_config", "pipeline"} <= config["args"].keys() & named
    with pytest.raises(TypeError, match="nom_gpus"):
        application({**config["args"], "nom_gpus": 1})


def test_the_templates_are_pods(service: Any) -> None:
    """Strictly: an unknown key, or a number where a text is wanted, is an error."""
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed here")
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes.validate(pod, "1.34", strict=True)
        pod["spec"]["containers"][0]["imagee"] = "no such key"
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(pod, "1.34", strict=True)
