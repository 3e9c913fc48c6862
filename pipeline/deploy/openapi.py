"""The service described in OpenAPI 3.1, for tools and for the page that the service shows."""

from typing import Any

from pipeline.deploy.read_bundle import Bundle

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
PICTURE = {"type": "string", "contentMediaType": "image/*", "contentEncoding": "binary"}
TOP = {
    "name": "top",
    "in": "query",
    "description": "how many of the likeliest classes to return",
    "schema": {"type": "integer", "minimum": 1, "default": 1},
}


def document(bundle: Bundle, limits: dict[str, Any], *, labels: list[str]) -> dict[str, Any]:
    """The description of all endpoints for this bundle. `labels` are what an answer may be."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": bundle.name,
            "version": bundle.fingerprint[:12],
            "description": f"Classifies pictures into {len(bundle.classes)} classes.",
        },
        "paths": _paths(_answer(bundle.classes, labels), limits),
    }


def _paths(answer: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    one_file = _object({"image": PICTURE})
    many_files = _object({"images": {"type": "array", "items": PICTURE, "maxItems": limits["pictures"]}})
    answers = _object({"answers": {"type": "array", "items": {"anyOf": [answer, ERROR]}}})
    refusals = _refusals(limits)
    return {
        "/predict": _operation(
            "The class of one picture. Send the picture as the body, or as the file of a form.",
            {"image/*": {"schema": PICTURE}, "multipart/form-data": {"schema": one_file}},
            answer,
            refusals,
        ),
        "/predict/batch": _operation(
            "The classes of the files of a form. Each file gets an answer or an error.",
            {"multipart/form-data": {"schema": many_files}},
            answers,
            refusals,
        ),
        "/health": {
            "get": {
                "summary": "What is served, and how busy the service is.",
                "responses": {"200": {"description": "the service answers", **_json({"type": "object"})}},
            }
        },
    }


def _operation(
    summary: str, body: dict[str, Any], schema: dict[str, Any], refusals: dict[str, str]
) -> dict[str, Any]:
    responses = {"200": {"description": "the answer", **_json(schema)}}
    responses |= {code: {"description": why, **_json(ERROR)} for code, why in refusals.items()}
    return {
        "post": {
            "summary": summary,
            "parameters": [TOP],
            "requestBody": {"required": True, "content": body},
            "responses": responses,
        }
    }


def _refusals(limits: dict[str, Any]) -> dict[str, str]:
    return {
        "400": "the request is wrong",
        "403": "a page of another site asks",
        "408": f"the request took more than {limits['seconds']:g} s to arrive",
        "413": f"more than {limits['bytes']} bytes, or a picture of more than {limits['pixels']} pixels, "
        f"or more than {limits['request_pixels']} pixels together",
        "422": "not a picture",
        "503": "too many requests; try again later",
    }


def _answer(classes: list[str], labels: list[str]) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    top = {"type": "array", "items": _object({"class": {"enum": classes}, "probability": probability})}
    guess = {"guess": {"enum": classes}} if labels != classes else {}
    return {
        "type": "object",
        "required": ["class", "probability", "top"],
        "properties": {"class": {"enum": labels}, "probability": probability, **guess, "top": top},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
