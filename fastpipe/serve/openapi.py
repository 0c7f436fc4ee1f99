"""``/openapi.json``: what is served, as an OpenAPI 3.1 document, with the models that are loaded."""

from __future__ import annotations

from typing import Any

from fastpipe.announcing import DATATYPES
from fastpipe.serve.repository import Model, Repository

__all__ = ["openapi"]

Schema = dict[str, Any]

_OPEN_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_OK = {"description": "What was asked for."}


def openapi(repository: Repository, *, has_token: bool) -> Schema:
    """Return the document."""
    paths: Schema = {
        "/v2": {"get": _operation("Name, version and extensions of the server.", "ServerMetadata")},
        "/v2/health/live": {"get": _operation("Whether the server runs.", "Flags", is_open=True)},
        "/v2/health/ready": {"get": _operation("Whether all models are ready.", "Flags", 503, is_open=True)},
        "/v2/models/stats": {"get": _operation("What all models have counted.", "Statistics")},
        "/v2/repository/index": {
            "post": _operation("All models, and their state.", "Index", 400, 413, body=("IndexRequest", False))
        },
    }
    for model in repository.models():
        paths |= _paths_of(model, f"/v2/models/{model.name}/versions/{model.version}")
        if repository.model(model.name) is model:
            paths |= _paths_of(model, f"/v2/models/{model.name}")
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "fastpipe",
            "version": "2",
            "description": "The Open Inference Protocol v2, with extensions of Triton's.",
        },
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths_of(model: Model, path: str) -> Schema:
    fails = (400, 404, 413, 429, 500, 503, 504)
    generate = {"generate": "Answer", "generate_stream": "an event stream"}
    inference = {"infer": "InferenceAnswer", "infer_stream": "an event stream"}
    found: Schema = {
        path: {"get": _operation("Inputs and outputs of the model.", "ModelMetadata", 404, 503)},
        f"{path}/ready": {"get": _operation("Whether the model is ready.", "Flags", 404, 503, is_open=True)},
        f"{path}/config": {"get": _operation("Its configuration, in Triton's form.", "Answer", 404, 503)},
        f"{path}/stats": {"get": _operation("What it has counted.", "Statistics", 404, 503)},
    }
    for verb, answer in inference.items():
        found[f"{path}/{verb}"] = {
            "post": _operation("Run it on tensors.", answer, *fails, body=("InferenceRequest", True))
        }
    for verb, answer in generate.items():
        found[f"{path}/{verb}"] = {"post": _operation("Run it on values.", answer, *fails, schema=_values_of(model))}
    return found


def _operation(
    summary: str,
    answer: str,
    *errors: int,
    body: tuple[str, bool] | None = None,
    schema: Schema | None = None,
    is_open: bool = False,
) -> Schema:
    if answer == "an event stream":
        content: Schema = {"text/event-stream": {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    error: Schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    described: Schema = {
        "summary": summary,
        "responses": {
            "200": {**_OK, "content": content},
            **{str(status): {"description": "Why not.", "content": error} for status in errors},
        },
    }
    if is_open:
        described["security"] = []
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body[0]}"}
    if schema is not None:
        described["requestBody"] = {
            "required": body is None or body[1],
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _values_of(model: Model) -> Schema:
    """Return what ``generate`` takes: a value for each input."""
    kinds = {
        "BYTES": "string",
        "BOOL": "boolean",
        "FP16": "number",
        "BF16": "number",
        "FP32": "number",
        "FP64": "number",
    }
    properties: Schema = {}
    for spec in model.signature.inputs:
        kind: Schema = {} if spec.datatype is None else {"type": kinds.get(spec.datatype, "integer")}
        properties[spec.name] = {"anyOf": [kind, {"type": "array"}]} if kind else {}
    return {
        "type": "object",
        "properties": {**properties, "id": {"type": "string"}, "parameters": _OPEN_PARAMETERS},
        "required": [spec.name for spec in model.signature.inputs if not spec.is_optional],
    }


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


_TEXT: Schema = {"type": "string"}
_TENSOR_METADATA = _object(["name", "datatype", "shape"], name=_TEXT, datatype=_TEXT, shape={"type": "array"})
_SCHEMAS: Schema = {
    "Error": _object(["error"], error=_TEXT),
    "Flags": {"type": "object"},
    "Answer": {"type": "object"},
    "Index": {"type": "array", "items": _object(["name", "version", "state"], name=_TEXT, version=_TEXT, state=_TEXT)},
    "IndexRequest": _object([], ready={"type": "boolean"}),
    "Statistics": _object(["model_stats"], model_stats={"type": "array"}),
    "ServerMetadata": _object(
        ["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions={"type": "array", "items": _TEXT}
    ),
    "ModelMetadata": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions={"type": "array", "items": _TEXT},
        platform=_TEXT,
        inputs={"type": "array", "items": _TENSOR_METADATA},
        outputs={"type": "array", "items": _TENSOR_METADATA},
    ),
    "InferenceRequest": _object(
        ["inputs"],
        id=_TEXT,
        parameters=_OPEN_PARAMETERS,
        inputs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ["name", "datatype", "shape", "data"],
                name=_TEXT,
                datatype=_DATATYPE,
                shape=_SHAPE,
                data={"type": "array"},
                parameters=_OPEN_PARAMETERS,
            ),
        },
        outputs={"type": "array", "items": _object(["name"], name=_TEXT, parameters=_OPEN_PARAMETERS)},
    ),
    "InferenceAnswer": _object(
        ["model_name", "model_version", "outputs"],
        id=_TEXT,
        model_name=_TEXT,
        model_version=_TEXT,
        outputs={
            "type": "array",
            "items": _object(["name", "datatype", "shape"], name=_TEXT, datatype=_DATATYPE, shape=_SHAPE),
        },
    ),
}
