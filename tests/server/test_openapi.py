"""/openapi.json: every route is in it, its examples work, and what comes back has the shape that it promises.

The whole document is put to the test by benchmarks/fuzz_server.py, which needs schemathesis.
"""

from typing import Any

import pytest
from pydantic import ValidationError

import patient
from flashdraft.server.openapi import OPERATIONS, Operation, error_of
from server_case import MODEL, Running


def test_every_operation_is_served_and_no_other_method(running: Running) -> None:
    for one in OPERATIONS:
        path = one.path.replace("{name}", MODEL)
        other = "delete" if one.method == "get" else "put"
        assert patient.request(other, running.url + path).status_code == 405
        assert patient.request(one.method, running.url + path).status_code in (200, 400, 409)


def test_every_reference_in_the_document_leads_somewhere(running: Running) -> None:
    document = running.get("/openapi.json").json()
    names = document["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                assert reference.removeprefix("#/components/schemas/") in names
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    model = names["ChatRequest"]["properties"]["model"]
    assert model["anyOf"] == [{"enum": [MODEL]}, {"type": "null"}]


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.request], ids=lambda one: one.path)
def test_an_example_gets_what_is_promised(running: Running, one: Operation) -> None:
    response = running.post(one.path, **one.example)
    assert response.status_code == 200, response.text
    assert not isinstance(one.answer, str)
    one.answer.model_validate(response.json())
    with pytest.raises(ValidationError):
        one.answer.model_validate(response.json() | {"id": 3, "count": "x", "prompt": 3, "text": 3})


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.request], ids=lambda one: one.path)
def test_an_error_has_the_shape_that_is_promised(running: Running, one: Operation) -> None:
    response = patient.post(running.url + one.path, content=b"x")
    assert response.status_code == 400
    error_of(one).model_validate(response.json())
    document = running.get("/openapi.json").json()["paths"][one.path]["post"]["responses"]["default"]
    promised = document["content"]["application/json"]["schema"]["$ref"]
    assert promised == f"#/components/schemas/{error_of(one).__name__}"
