"""What typed requests are made of: the base of all, and the types of single fields."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictInt, WithJsonSchema

from flashdraft.admission import AUTO, BlockSize

MAX_STOPS, MAX_STOP_LEN = 16, 256
MAX_INT = 2**62
MAX_TOP_LOGPROBS = 20  # OpenAI's
MAX_BIASES = 4096  # of logits
MAX_TOOLS = 1024  # OpenAI has 128, Anthropic no limit

# Of a million wrong values, one error.
TokenIds = Annotated[list[StrictInt], Field(fail_fast=True)]
ManyTokenIds = Annotated[list[TokenIds], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LEN)]
Count = Annotated[int, Field(ge=1, le=MAX_INT)]


def names_elsewhere(length: str, stop: str, **more: str) -> Mapping[str, str]:
    """For :attr:`Fields.renamed`: how every way of asking calls an answer's length and what ends it."""
    lengths = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
    return dict.fromkeys(lengths, length) | dict.fromkeys(("stop", "stop_sequences"), stop) | more


def _block_size(value: Any) -> Any:
    if value == AUTO or (type(value) is int and 1 <= value <= MAX_INT):
        return value
    raise ValueError(f"expected {AUTO} or a number of tokens, 1 or more")


_SIZE_SCHEMA = {"anyOf": [{"const": AUTO}, {"type": "integer", "minimum": 1, "maximum": MAX_INT}]}
BlockSizeField = Annotated[BlockSize, PlainValidator(_block_size), WithJsonSchema(_SIZE_SCHEMA)]


class Fields(BaseModel):
    """Fields that nobody knows are passed over here; :mod:`flashdraft.server.unknown_fields` says which there were."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), populate_by_name=True)

    # Of the same type at OpenAI, vLLM, SGLang or Anthropic: what changes no answer, and what cannot be had here.
    tolerated: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[frozenset[str]] = frozenset()
    # What another way of asking calls what is called otherwise here: refused with the right name.
    renamed: ClassVar[Mapping[str, str]] = {}
