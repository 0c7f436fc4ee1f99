"""``/openapi.json`` says what is served, and what is served keeps to it, whatever a client sends."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")
pytest.importorskip("starlette", reason="the extra serve is not installed here")

from helpers import once, run_loop
from served import serving

from fastpipe import Pipe
from fastpipe.serve.openapi import openapi
from fastpipe.serve.repository import Repository

MODELS: dict[str, Any] = {
    "echo": {"a": {"backend": "Identity", "max": 8}},
    "rows": {
        "a": {"backend": "Identity", "max": 8},
        "serve": {
            "max_batch_size": 4,
            "inputs": {"x": {"datatype": "FP32", "shape": [2], "key": "data"}},
            "outputs": {"y": {"datatype": "FP32", "shape": [2], "key": "result"}},
        },
    },
}


def test_the_document() -> None:
    """It has the models that are loaded, by their inputs, and a token where one is asked for."""

    async def main() -> None:
        repository = Repository({name: lambda nodes=nodes: Pipe(nodes) for name, nodes in MODELS.items()})
        await repository.open()
        document = openapi(repository, has_token=True)
        assert {"/v2", "/v2/models/echo/infer", "/v2/models/rows/versions/1/generate"} <= document["paths"].keys()
        schema = document["paths"]["/v2/models/rows/generate"]["post"]["requestBody"]["content"]["application/json"]
        assert schema["schema"]["properties"]["x"]["anyOf"][0] == {"type": "number"}
        assert document["security"] == [{"token": []}]
        assert document["paths"]["/v2/health/live"]["get"]["security"] == []
        await repository.aclose()

    run_loop(main)


@once
def test_whatever_a_client_sends() -> None:
    """Requests made from the document, right and wrong: no answer is the server's fault, each is as documented."""
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
    bounds = hypothesis.settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    asked: list[str] = []
    with serving({name: lambda nodes=nodes: Pipe(nodes) for name, nodes in MODELS.items()}) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            if "versions" in operation.path or "stream" in operation.path:
                continue  # the same again; and what needs a backend that streams

            @hypothesis.given(case=operation.as_strategy())
            @bounds
            def ask(case: Any) -> None:
                case.validate_response(case.call(), checks=checks)

            ask()
            asked.append(operation.path)
    assert {"/v2", "/v2/models/rows/infer", "/v2/models/echo/generate"} <= set(asked)
