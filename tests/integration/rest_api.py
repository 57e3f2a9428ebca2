"""A client of a daemon's REST API that knows nothing but the API's document: each operation is a
method (api.getJob(id=...)), and what is asked and answered is held to the document's schemas."""

import http.client
import json
import os
import ssl
import urllib.parse
import uuid

import pytest

import support


def document(name="openapi.json"):
    """The hub's; "openapi-node.json": the node's."""
    with open(os.path.join(support.TOP, "docs", name), encoding="utf-8") as file:
        return json.load(file)


class Problem(Exception):
    """An answer of 400 and above."""

    def __init__(self, status, headers, body):
        super().__init__(f"{status}: {body}")
        self.status, self.headers, self.body = status, headers, body
        self.code, self.detail = body.get("code"), body.get("detail")


class Operation:
    def __init__(self, api, method, path, value):
        self.api, self.method, self.path, self.value = api, method.upper(), path, value
        self.id, self.scope = value["operationId"], value["x-scope"]
        self.parameters = [api.resolve(parameter) for parameter in value.get("parameters", [])]
        self.creates = any(parameter["name"] == "Idempotency-Key" for parameter in self.parameters)
        self.content = value.get("requestBody", {}).get("content", {})
        self.answers = {int(status): api.resolve(answer) for status, answer in value["responses"].items()
                        if status != "default"}

    def target(self, given):
        """The path and query with these values; takes them out of given."""
        path, query = self.path, {}
        for parameter in self.parameters:
            name = parameter["name"]
            if parameter["in"] == "path":
                path = path.replace("{" + name + "}", urllib.parse.quote(str(given.pop(name)), safe=""))
            elif parameter["in"] == "query" and name in given:
                query[name] = given.pop(name)
        return path + ("?" + urllib.parse.urlencode(query) if query else "")

    def __call__(self, body=None, headers=None, **given):
        target = self.target(given)
        assert not given, f"{self.id} has no {', '.join(given)}"
        headers = dict(headers or {})
        data = None
        if body is not None:
            kind = next(iter(self.content))
            headers["Content-Type"] = kind
            if kind == "application/json":
                self.api.check(body, self.content[kind]["schema"])
                data = json.dumps(body).encode()
            else:
                data = body
        if self.creates:
            headers.setdefault("Idempotency-Key", str(uuid.uuid4()))
        status, answer_headers, answer = self.api.request(self.method, target, data, headers)
        if status >= 400:
            assert answer_headers["content-type"] == "application/problem+json", (self.id, status, answer)
            problem = json.loads(answer)
            self.api.check(problem, {"$ref": "#/components/schemas/Problem"}, self.api.answers)
            raise Problem(status, answer_headers, problem)
        assert status in self.answers, (self.id, status, answer)
        for name in self.answers[status].get("headers", {}):
            assert name.lower() in answer_headers, (self.id, name)
        content = self.answers[status].get("content", {})
        if not content:
            assert answer == b"", (self.id, answer)
            return None
        kind = answer_headers["content-type"].split(";")[0]
        assert kind in content, (self.id, kind)
        if kind != "application/json":
            return answer
        value = json.loads(answer)
        # Each member of an answer is described.
        self.api.check(value, content[kind]["schema"], self.api.answers)
        return value

    def events(self, **given):
        """Follows a stream: (name, data) of each event."""
        connection = self.api.connect()
        try:
            connection.request("GET", self.target(given), headers=self.api.headers())
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            name = None
            for line in answer:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)
        finally:
            connection.close()


class Api:
    """api.OPERATION(body=..., PARAMETER=...), or Problem."""

    def __init__(self, url, token=None, ca=None, api_document=None):
        self.url, self.token, self.ca = urllib.parse.urlsplit(url), token, ca
        self.document = api_document or document()
        self.answers = {"schemas": self.closed(self.document["components"]["schemas"]),
                        "responses": self.document["components"]["responses"]}
        jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")
        self.validator = jsonschema.Draft202012Validator
        self.operations = {}
        for path, methods in self.document["paths"].items():
            for method, value in methods.items():
                operation = Operation(self, method, path, value)
                assert operation.id not in self.operations
                self.operations[operation.id] = operation

    def __getattr__(self, name):
        try:
            return self.operations[name]
        except KeyError:
            raise AttributeError(name) from None

    def as_(self, token):
        return Api(self.url.geturl(), token, self.ca, self.document)

    def resolve(self, value):
        while "$ref" in value:
            reference = value["$ref"]
            value = self.document
            for part in reference.removeprefix("#/").split("/"):
                value = value[part]
        return value

    def closed(self, schema):
        """The same, in which an object has no members but those that are told."""
        if isinstance(schema, list):
            return [self.closed(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        if "allOf" in schema:
            parts = [self.resolve(part) for part in schema["allOf"]]
            schema = {"type": "object", "required": sum((part.get("required", []) for part in parts), []),
                      "properties": {name: value for part in parts for name, value in part["properties"].items()}}
        made = {name: self.closed(value) for name, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and "type" in schema:
            made.setdefault("additionalProperties", False)
        return made

    def check(self, value, schema, components=None):
        """value holds to a schema of the document."""
        whole = {**schema, "components": components or self.document["components"]}
        errors = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
                  for error in self.validator(whole).iter_errors(value)]
        assert not errors, "\n".join(errors)

    def connect(self):
        if self.url.scheme == "http":
            return http.client.HTTPConnection(self.url.netloc, timeout=support.TIMEOUT)
        context = ssl.create_default_context(cafile=self.ca)
        return http.client.HTTPSConnection(self.url.netloc, timeout=support.TIMEOUT, context=context)

    def headers(self):
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def request(self, method, target, data=None, headers=None):
        """Status, headers (in small letters), body."""
        connection = self.connect()
        try:
            connection.request(method, target, body=data, headers={**self.headers(), **(headers or {})})
            answer = connection.getresponse()
            return (answer.status, {name.lower(): value for name, value in answer.getheaders()},
                    answer.read())
        finally:
            connection.close()

    def all(self, operation, **given):
        """All items of a list, page by page."""
        after = {}
        while True:
            page = getattr(self, operation)(**given, **after)
            yield from page["items"]
            if page["next"] is None:
                return
            after = {"after": page["next"]}

    def follow(self, job):
        """Until the job has ended: its last state."""
        states = [job["state"]]
        for name, job in self.followJob.events(id=job["id"]):
            self.check(job, {"$ref": "#/components/schemas/Job"}, self.answers)
            states.append(job["state"])
            if name == "end":
                break
        else:
            raise AssertionError(f"the stream of {job['id']} ended without an end: {states}")
        assert job == self.getJob(id=job["id"])
        return job
