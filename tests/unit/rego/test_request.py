"""The input document: that of the OPA Envoy plugin, and nothing that has to be guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bulkhead.rego.messages import message
from bulkhead.rego.request import InputError, input_document, package_of

JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


def request(path: str = "/", body: str = "", headers: dict[str, str] | None = None) -> Any:
    made = message("CheckRequest")()
    http = made.attributes.request.http
    http.method, http.path, http.body = "GET", path, body
    http.headers.update(headers or {})
    return made


def test_document_is_the_request_in_the_names_of_the_protocol() -> None:
    made = request("/v1/orders", headers={"x-user": "ann"})
    made.attributes.source.address.socket_address.address = "192.0.2.1"
    made.attributes.source.address.socket_address.port_value = 4711
    made.attributes.source.principal = "spiffe://example.org/shop/web"
    made.attributes.request.http.size = -1
    made.attributes.request.http.raw_body = b"\x00\x01"
    made.attributes.request.time.FromSeconds(0)
    made.attributes.context_extensions["package"] = "shop.orders"
    made.attributes.metadata_context.filter_metadata["envoy.filters.http.jwt_authn"].update({"jwt": {"sub": "ann"}})
    document = input_document(message("CheckRequest").FromString(made.SerializeToString()))
    assert json.loads(json.dumps(document)) == {
        "attributes": {
            "source": {
                "address": {"socketAddress": {"address": "192.0.2.1", "portValue": 4711}},
                "principal": "spiffe://example.org/shop/web",
            },
            "request": {
                "time": "1970-01-01T00:00:00Z",
                "http": {
                    "method": "GET",
                    "path": "/v1/orders",
                    "headers": {"x-user": "ann"},
                    "size": "-1",
                    "rawBody": "AAE=",
                },
            },
            "contextExtensions": {"package": "shop.orders"},
            "metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": {"jwt": {"sub": "ann"}}}},
        },
        "version": {"ext_authz": "v3", "encoding": "protojson"},
        "parsed_path": ["v1", "orders"],
        "parsed_query": {},
        "parsed_body": None,
        "truncated_body": False,
        "source_principal": "spiffe://example.org/shop/web",
    }
    assert package_of(made) == "shop.orders"


@pytest.mark.parametrize(
    "path, parsed_path, parsed_query",
    [
        ("/", [""], {}),
        ("/a/b", ["a", "b"], {}),
        ("/a/b/", ["a", "b", ""], {}),
        ("//a//b", ["a", "", "b"], {}),
        ("/a%2Fb%20c", ["a", "b c"], {}),
        ("/caf%C3%A9", ["café"], {}),
        ("/a;v=1", ["a;v=1"], {}),
        ("/a?b=1&b=2&c", ["a"], {"b": ["1", "2"], "c": [""]}),
        ("/a?q=x+y%3D%26", ["a"], {"q": ["x y=&"]}),
        ("/a?b=1;c=2", ["a"], {"b": ["1;c=2"]}),
        ("/a?b=?", ["a"], {"b": ["?"]}),
        ("*", ["*"], {}),
    ],
)
def test_path_and_query_are_decoded_and_split(
    path: str, parsed_path: list[str], parsed_query: dict[str, list[str]]
) -> None:
    document = input_document(request(path))
    assert (document["parsed_path"], document["parsed_query"]) == (parsed_path, parsed_query)


@pytest.mark.parametrize(
    "headers, body, parsed, truncated",
    [
        (JSON, '{"a": [1, null]}', {"a": [1, None]}, False),
        ({"content-type": "Application/JSON; charset=utf-8"}, "3", 3, False),
        (JSON, "", None, False),
        (JSON | {"content-length": "99"}, '{"a":', None, True),
        (JSON | {"x-envoy-auth-partial-body": "true"}, '{"a":', None, True),
        (FORM, "a=1&a=2&b=x+y", {"a": ["1", "2"], "b": ["x y"]}, False),
        ({"content-type": "text/plain"}, "{}", None, False),
        ({"content-type": "text/application/json"}, "{}", None, False),
        ({}, "{}", None, False),
    ],
)
def test_body_is_read_by_its_type(headers: dict[str, str], body: str, parsed: object, truncated: bool) -> None:
    document = input_document(request(body=body, headers=headers))
    assert (document["parsed_body"], document["truncated_body"]) == (parsed, truncated)


@pytest.mark.parametrize(
    "path, headers, body",
    [
        ("/a%2", {}, ""),
        ("/a%zz", {}, ""),
        ("/a%FF", {}, ""),
        ("/a?b=%", {}, ""),
        ("/a?b=%FF", {}, ""),
        ("/", JSON, "{"),
        ("/", JSON, '{"a": 1, "a": 2}'),
        ("/", JSON, "NaN"),
        ("/", JSON, "[" * 100_000),
        ("/", JSON | {"content-length": "-1"}, "{}"),
        ("/", FORM, "a=%F"),
    ],
)
def test_refuse_what_two_readers_may_read_differently(path: str, headers: dict[str, str], body: str) -> None:
    with pytest.raises(InputError):
        input_document(request(path, body, headers))


def test_body_that_comes_as_bytes_is_read_too() -> None:
    made = request(headers=JSON)
    made.attributes.request.http.raw_body = b'{"a": 1}'
    assert input_document(made)["parsed_body"] == {"a": 1}
    made.attributes.request.http.raw_body = b'"\xff"'
    with pytest.raises(InputError):
        input_document(made)
