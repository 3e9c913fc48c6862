"""The service described in OpenAPI, for tools and for the page that it shows."""

from typing import Any

from pipeline.deploy.bundle import Bundle


def document(bundle: Bundle, limits: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.1 of the endpoints over this bundle."""
    named = {"class": {"enum": bundle.classes}, "probability": {"type": "number", "minimum": 0, "maximum": 1}}
    answer = {
        "type": "object",
        "required": ["class", "probability", "top"],
        "properties": {**named, "top": {"type": "array", "items": {"type": "object", "properties": named}}},
    }
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    top = {
        "name": "top",
        "in": "query",
        "description": "how many of the likeliest classes",
        "schema": {"type": "integer", "minimum": 1, "default": 1},
    }
    picture = {"type": "string", "contentMediaType": "image/*", "contentEncoding": "binary"}
    one_file = {"schema": {"type": "object", "properties": {"image": picture}}}
    files = {"schema": {"type": "object", "properties": {"images": {"type": "array", "items": picture, "maxItems": limits["pictures"]}}}}
    refusals = {
        "400": "the request makes no sense",
        "408": f"it took more than {limits['seconds']:g} s to arrive",
        "413": f"more than {limits['bytes']} bytes, or a picture of more than {limits['pixels']} pixels",
        "422": "not a picture",
        "503": "too much to do; try again later",
    }

    def operation(summary: str, body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        responses = {"200": {"description": "the answer", **_json(schema)}}
        responses |= {code: {"description": says, **_json(error)} for code, says in refusals.items()}
        return {
            "post": {"summary": summary, "parameters": [top], "requestBody": {"required": True, "content": body}, "responses": responses}
        }

    many = {"type": "object", "properties": {"answers": {"type": "array", "items": {"anyOf": [answer, error]}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": bundle.name, "version": bundle.fingerprint[:12], "description": f"Tells {len(bundle.classes)} classes apart."},
        "paths": {
            "/predict": operation(
                "The class of one picture: the body itself, or a form's file",
                {"image/*": {"schema": picture}, "multipart/form-data": one_file},
                answer,
            ),
            "/predict/batch": operation(
                "The classes of the files of a form, each with an answer or an error", {"multipart/form-data": files}, many
            ),
            "/health": {
                "get": {
                    "summary": "What is served, and how busy it is",
                    "responses": {"200": {"description": "it answers", **_json({"type": "object"})}},
                }
            },
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
