"""What an answer must look like, by the names that OpenAI, vLLM and SGLang have for it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field

from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_parts import END_THINK, THINK, Thinking
from flashdraft.server.api_errors import ApiError
from flashdraft.server.fields import Fields
from flashdraft.server.harmony import FINAL


class JsonSchema(Fields):
    """OpenAI's named schema. It is followed whether ``strict`` or not."""

    tolerated = frozenset({"description"})

    name: str = "answer"
    schema_: dict[str, Any] | bool = Field(default={"type": "object"}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """As a grammar; None for free text. Raises UsageError without a schema."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar.any_json()
        if self.json_schema is None:
            raise UsageError("json_schema is missing; expected {name, schema}")
        return _of_schema(self.json_schema.schema_)


class StructuredOutputs(Fields):
    """vLLM's ``structured_outputs``; one of them."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    json_: dict[str, Any] | bool | str | None = Field(default=None, alias="json")
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None


class GrammarFields(Fields):
    """The fields of a request that ask for structured output; at most one may."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None
    json_schema: str | None = None  # SGLang's, as it writes schemas
    regex: str | None = None
    ebnf: str | None = None

    def asked_grammar(self) -> Grammar | None:
        """The grammar that is asked for. Raises ApiError 400, with the field's name, for more or a wrong one."""
        inner = self.structured_outputs or StructuredOutputs()
        makers: dict[str, tuple[Any, Callable[[Any], Grammar | None]]] = {
            "response_format": (self.response_format, lambda one: one.grammar()),
            "structured_outputs.json": (inner.json_, _of_schema),
            "structured_outputs.regex": (inner.regex, lambda text: Grammar("regex", text)),
            "structured_outputs.grammar": (inner.grammar, lambda text: Grammar("ebnf", text)),
            "structured_outputs.choice": (inner.choice, Grammar.choice),
            "structured_outputs.json_object": (inner.json_object or None, lambda _: Grammar.any_json()),
            "guided_json": (self.guided_json, _of_schema),
            "guided_regex": (self.guided_regex, lambda text: Grammar("regex", text)),
            "guided_grammar": (self.guided_grammar, lambda text: Grammar("ebnf", text)),
            "guided_choice": (self.guided_choice, Grammar.choice),
            "json_schema": (self.json_schema, _of_schema),
            "regex": (self.regex, lambda text: Grammar("regex", text)),
            "ebnf": (self.ebnf, lambda text: Grammar("ebnf", text)),
        }
        found: dict[str, Grammar] = {}
        for name, (value, make) in makers.items():
            try:
                if value is not None and (grammar := make(value)) is not None:
                    found[name] = grammar
            except UsageError as error:
                raise ApiError(400, f"{name}: {error}", name) from None
        if len(found) > 1:
            first, second, *_ = found
            raise ApiError(400, f"{first} and {second} both say what the answer is: leave one out", second)
        return next(iter(found.values()), None)


def behind_thoughts(params: SamplingParams, thinking: Thinking) -> SamplingParams:
    """With the grammar, if there is one, behind the thoughts: those that the prompt has opened, or that may come."""
    if params.grammar is None or thinking == "none":
        return params
    opened_by = THINK if thinking == "possible" else None
    after = FINAL if thinking == "harmony" else END_THINK
    return replace(params, grammar=replace(params.grammar, after=after, opened_by=opened_by))


def _of_schema(schema: dict[str, Any] | bool | str) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))
