"""GET /openapi.json and /docs: what can be asked, made from the table of routes and the schemas of the bodies. The page needs nothing from the net."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from markupsafe import Markup
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

import bedplate
from bedplate.serve.pages.page import page
from bedplate.serve.route import ANY, PUBLIC, Call, Route, answer


async def openapi(call: Call) -> Response:
    """The description for machines."""
    return answer(description(call.gateway.routes))


async def docs(call: Call) -> Response:
    """The description for people."""
    title = f"Bedplate {bedplate.__version__}: interface"
    return page(call, "interface.html", title=title, content=Markup(contents(description(call.gateway.routes))))


def description(routes: tuple[Route, ...]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies = [route.body for route in routes if route.body is not None]
    names, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        doc = [line.strip() for line in (route.handler.__doc__ or "").strip().splitlines()]
        need = "no key" if route.scope is PUBLIC else f"scope {route.scope}" if route.scope else "any key"
        told: dict[str, Any] = {"summary": doc[0] if doc else "", "description": f"Needs {need}.", "responses": _RESPONSES, "security": _SECURITY}
        if route.scope is PUBLIC:
            told["security"] = []
        if places := re.findall(r"\{(\w+)(?::\w+)?\}", route.path):
            told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in places]
        if route.body is not None:
            told["requestBody"] = {"required": True, "content": {"application/json": {"schema": names[(route.body, "validation")]}}}
        paths.setdefault(re.sub(r":\w+\}", "}", route.path), {})[route.method.lower()] = told
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bedplate", "version": bedplate.__version__, "description": "OpenAI's words, on models of your own."},
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {}), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


_SECURITY: list[dict[str, list[str]]] = [{"key": []}]
_RESPONSES = {
    "200": {"description": "The answer; headers x-request-id, and for questions x-bedplate-route and x-bedplate-receipt."},
    "default": {"description": 'What went wrong: {"error": {"message", "type", "param", "code"}}.'},
}


def contents(told: dict[str, Any]) -> str:
    """The description as headings, tables and links within them."""
    out = [f"<h1>Bedplate {escape(told['info']['version'])}: interface</h1>"]
    out += ['<p>The same for machines: <a href="/openapi.json">openapi.json</a>.</p>']
    for path, methods in told["paths"].items():
        if path == "/" or path.startswith("/pages/"):  # for people, who find them above
            continue
        for method, one in methods.items():
            out.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(one['summary'])} {escape(one['description'])}</p>")
            if "requestBody" in one:
                out.append(f"<p>Body: {_kind(one['requestBody']['content']['application/json']['schema'])}</p>")
    for name, schema in sorted(told["components"]["schemas"].items()):
        out.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>')
        out.append("<div class=\"scroll\"><table><thead><tr><th>key</th><th>type</th><th>what</th></tr></thead><tbody>")
        required = schema.get("required", [])
        for key, one in schema.get("properties", {}).items():
            needed = " (required)" if key in required else ""
            out.append(f"<tr><td><code>{escape(key)}</code>{needed}</td><td>{_kind(one)}</td><td>{escape(one.get('description', ''))}</td></tr>")
        out.append("</tbody></table></div>")
    return "\n".join(out)


def _kind(schema: dict[str, Any]) -> str:
    """A type in a few words, with links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for many in ("anyOf", "oneOf"):
        if many in schema:
            return " or ".join(_kind(one) for one in schema[many])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"<code>{escape(repr(one))}</code>" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))


ROUTES = (Route("GET", "/openapi.json", openapi, ANY), Route("GET", "/docs", docs, ANY))
