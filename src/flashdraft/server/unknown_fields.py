"""Fields of a request that its type does not have: misspelt ones are refused, ones that nobody knows are logged."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.fields import Fields
from flashdraft.server.logs import log_event
from flashdraft.server.unsupported import known_fields

_ALIKE = 0.9  # of difflib's ratio: tempreature is temperature, top_q is not top_p
_MAX_CHARS = 64  # of a name that is compared or told
_MAX_TOLD = 16


def heed_unknown_fields(body: Json, asked: Fields) -> None:
    """Write a log line that names the fields of ``body`` without effect, which ``asked`` was read from.

    Raises ApiError 400 for one that is no more than a slip away from a field that there is, and for one that asks for
    what cannot be had.
    """
    told: dict[str, None] = {}
    for where, name, kind in _unknown(body, asked, ""):
        if name in kind.refused:
            raise ApiError(400, f"{where} is not supported by this server; leave it out", where)
        short = name[:_MAX_CHARS]
        renamed = kind.renamed.get(name, "")
        # Some clients say a thing by several names, the right one among them.
        is_lost = name in kind.renamed and not _is_said(body, where.removesuffix(name) + renamed)
        if meant := [renamed] if is_lost else get_close_matches(short, _known_to(kind, where), 1, _ALIKE):
            raise ApiError(400, f"{where} is no field of this request; did you mean {meant[0]!r}?", where)
        if len(told) < _MAX_TOLD:
            told.setdefault(short)
    if told:
        log_event("unknown fields", names=",".join(told))


def _is_said(body: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(body, dict) or body.get(name) is None:
            return False
        body = body[name]
    return True


def _unknown(body: Any, asked: Any, where: str) -> Iterator[tuple[str, str, type[Fields]]]:
    """The place of each unknown field, its name, and the type that does not have it."""
    if isinstance(asked, Fields) and isinstance(body, dict):
        names = _names(type(asked))
        beyond = asked.tolerated | (known_fields() if not where else frozenset())
        for name, value in body.items():
            place = f"{where}.{name}" if where else name
            if name in names:
                yield from _unknown(value, getattr(asked, names[name]), place)
            elif value is not None and name not in beyond:
                yield place, name, type(asked)
    elif isinstance(asked, list) and isinstance(body, list):
        for i, (said, one) in enumerate(zip(body, asked, strict=True)):
            if not isinstance(one, Fields | list):
                break  # a list of plain values
            yield from _unknown(said, one, f"{where}[{i}]")


def _names(kind: type[Fields]) -> dict[str, str]:
    """How clients call each field -> its attribute."""
    fields = kind.model_fields.items()
    return {name: name for name, _ in fields} | {one.alias: name for name, one in fields if one.alias}


def _known_to(kind: type[Fields], where: str) -> Iterable[str]:
    return [*_names(kind), *kind.tolerated, *(known_fields() if "." not in where else ())]
