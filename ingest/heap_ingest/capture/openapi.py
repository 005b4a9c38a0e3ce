"""The description of the HTTP interface for programs: OpenAPI 3.1, from the limits and columns in force."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from heap_compiler.schema import EVENT_COLUMNS
from heap_ingest.capture.limits import Limits

__all__ = ["openapi_document"]

_JSON = "application/json"
_RESULT = {"$ref": "#/components/schemas/Result"}
_ERROR = {"$ref": "#/components/schemas/Error"}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}
}


def openapi_document(limits: Limits) -> dict[str, Any]:
    """The document that /openapi.json shows."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "heap capture",
            "version": metadata.version("heap-analytics"),
            "description": "Takes events, users and identities, and answers 2xx when Kafka has acknowledged them. "
            "Whatever is answered otherwise can be sent again without harm.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {"header": []}, {"query": []}, {}],
        "paths": {
            "/capture": {"post": _post("capture", "A batch of events", "Batch")},
            "/track": {"post": _post("track", "One event", "Track")},
            "/identify": {"post": _post("identify", "Who a user is", "Identify")},
            "/users": {"post": _post("users", "Properties of users", "Users")},
            "/pixel.gif": {"get": _pixel()},
            "/healthz": {
                "get": {
                    "operationId": "healthz",
                    "summary": "Whether events can be taken",
                    "security": [{}],
                    "responses": {
                        "200": _response("They can", {"$ref": "#/components/schemas/Health"}),
                        "503": _response("They cannot", {"$ref": "#/components/schemas/Health"}),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters for Prometheus",
                    "security": [{}],
                    "responses": {
                        "200": {"description": "Counters", "content": {"text/plain": {"schema": {"type": "string"}}}}
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document",
                    "security": [{}],
                    "responses": {"200": _response("The document", {"type": "object"})},
                }
            },
        },
        "components": {"securitySchemes": _SECURITY, "schemas": _schemas(limits)},
    }


_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The write key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Write-Key"},
    "query": {"type": "apiKey", "in": "query", "name": "write_key"},
}

_SENT_AT = {
    "name": "sent_at",
    "in": "query",
    "description": "The client's clock when it sends the request; instead of the one in the body, which can so be sent "
    "again as it is",
    "schema": {"$ref": "#/components/schemas/Time"},
}


def _post(operation: str, summary: str, schema: str) -> dict[str, Any]:
    body = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [_SENT_AT],
        "requestBody": {"required": True, "content": {_JSON: body, "text/plain": body}},
        "responses": {
            "200": _response("All that is counted as accepted is acknowledged by Kafka", _RESULT),
            **_refusals(),
            "408": _response("The body came too slowly", _ERROR),
            "413": _response("The body, or the batch, is too large", _ERROR),
            "415": _response("Neither JSON nor text, or packed otherwise than with gzip", _ERROR),
        },
    }


def _refusals() -> dict[str, Any]:
    """Answers that every way to send something has."""
    return {
        "400": _response("Nothing is accepted: what is wrong, and where", {"anyOf": [_ERROR, _RESULT]}),
        "401": {
            **_response("No write key, or one that is unknown or revoked", _ERROR),
            "headers": {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
        },
        "429": {**_response("More events than the write key may send", _ERROR), "headers": _RETRY_AFTER},
        "503": {
            **_response("Kafka has not acknowledged all, or too much is waiting for it: send all of it again", _ERROR),
            "headers": _RETRY_AFTER,
        },
    }


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _pixel() -> dict[str, Any]:
    text = {"type": "string"}
    names = ("user_id", "anonymous_id", "time", "event_id", "session_id", "path", "title", "referrer")
    return {
        "operationId": "pixel",
        "summary": "One event in the address of an image; every parameter is a field of it",
        "parameters": [
            {"name": "type", "in": "query", "required": True, "schema": {"type": "string", "minLength": 1}},
            *({"name": name, "in": "query", "schema": text} for name in names),
            _SENT_AT,
        ],
        "responses": {
            "200": {
                "description": "A transparent pixel: the event is acknowledged by Kafka",
                "content": {"image/gif": {"schema": {"type": "string", "contentMediaType": "image/gif"}}},
            },
            **_refusals(),
        },
    }


def _schemas(limits: Limits) -> dict[str, Any]:
    number = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    identifier: dict[str, Any] = {
        "anyOf": [number, {"type": "string", "minLength": 1, "maxLength": limits.name_length}]
    }
    name = {"type": "string", "maxLength": limits.name_length}
    text = {"type": "string", "maxLength": limits.text_length}
    properties = {
        "type": "object",
        "maxProperties": limits.properties,
        "propertyNames": name,
        "description": f"Nested at most {limits.depth} deep. Passwords, cards and keys are dropped, and from "
        "autocaptured events what was typed into forms",
    }
    time = {
        "description": "ISO 8601, UTC where it has no offset, or a number of seconds, milliseconds or microseconds "
        "since 1970, told apart by its size",
        "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}],
    }
    user: dict[str, Any] = {
        "user_id": {**identifier, "description": "A text is numbered by its hash"},
        "anonymous_id": {**identifier, "description": "The user, where there is no user_id"},
    }
    has_user: dict[str, Any] = {"anyOf": [{"required": ["user_id"]}, {"required": ["anonymous_id"]}]}
    when = {"$ref": "#/components/schemas/Time"}
    event_fields: dict[str, Any] = {
        "type": {"type": "string", "minLength": 1, "maxLength": limits.name_length},
        **user,
        "time": {"description": "When it happened; without it, now", **when},
        "event_id": {**identifier, "description": "Makes sending it twice harmless; needs a time. Made if missing"},
        "session_id": identifier,
        **{
            column.name: {**text, "description": column.comment}
            for column in EVENT_COLUMNS.values()
            if column.name not in {"user_id", "time", "event_id", "session_id", "type"}
        },
        "properties": properties,
    }
    envelope: dict[str, Any] = {
        "write_key": {"type": "string", "description": "Where it is neither in a header nor in the query"},
        "sent_at": when,
        "clock_offset": {
            "type": "number",
            "description": "Seconds to add to the client's clock, known from an earlier answer; instead of sent_at",
        },
    }
    item = {"type": "object", "description": "Fields not named here are kept among the properties"}
    user_item: dict[str, Any] = {
        **item,
        "properties": {**user, "time": when, "properties": {**properties, "minProperties": 1}},
        "required": ["properties"],
        **has_user,
    }
    return {
        "Time": time,
        "Event": {**item, "properties": event_fields, "required": ["type"], **has_user},
        "Batch": {
            "anyOf": [
                {
                    "type": "object",
                    "description": "Fields beside these are those of every event that does not have them",
                    "properties": {
                        **envelope,
                        "events": {
                            "type": "array",
                            "items": {"$ref": "#/components/schemas/Event"},
                            "maxItems": limits.events,
                        },
                    },
                    "required": ["events"],
                },
                {"type": "array", "items": {"$ref": "#/components/schemas/Event"}, "maxItems": limits.events},
            ]
        },
        "Track": {**item, "properties": {**event_fields, **envelope}, "required": ["type"], **has_user},
        "Identify": {
            **item,
            "properties": {
                **user,
                "identity": {**name, "minLength": 1, "description": "The id the app knows the user by"},
                "time": when,
                "properties": properties,
                **envelope,
            },
            "required": ["identity"],
            **has_user,
        },
        "Users": {
            "anyOf": [
                {**user_item, "properties": {**user_item["properties"], **envelope}},
                {
                    "type": "object",
                    "properties": {
                        **envelope,
                        "users": {"type": "array", "items": user_item, "maxItems": limits.events},
                    },
                    "required": ["users"],
                },
            ]
        },
        "Result": {
            "type": "object",
            "properties": {
                "accepted": {"type": "integer", "minimum": 0, "description": "How many are acknowledged by Kafka"},
                "rejected": {
                    "type": "array",
                    "description": "What was not taken, and would not be if it were sent again",
                    "items": {
                        "type": "object",
                        "properties": {"index": {"type": "integer", "minimum": 0}, "error": {"type": "string"}},
                        "required": ["index", "error"],
                        "additionalProperties": False,
                    },
                },
                "clock_offset": {
                    "type": "number",
                    "description": "Seconds that were added to the times: the client's clock is wrong by so much",
                },
                "error": {"type": "string", "description": "Why nothing of it was accepted"},
            },
            "required": ["accepted", "rejected"],
            "additionalProperties": False,
        },
        "Error": {
            "type": "object",
            "properties": {"error": {"type": "string"}},
            "required": ["error"],
            "additionalProperties": False,
        },
        "Health": {
            "type": "object",
            "properties": {"kafka": {"type": "boolean"}, "write_keys": {"type": "boolean"}},
            "required": ["kafka", "write_keys"],
            "additionalProperties": False,
        },
    }
