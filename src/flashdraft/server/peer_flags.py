"""vLLM's and SGLang's own flags for speculative decoding, translated to ours or refused by name."""

import json
from dataclasses import dataclass
from typing import Any

from flashdraft.admission import BlockSize
from flashdraft.errors import UsageError

_METHOD = "dflash"
_KNOWN_KEYS = {"method", "model", "num_speculative_tokens"}


@dataclass(frozen=True)
class Speculation:
    """Which drafter and how long a block, as far as it was said."""

    draft: str | None = None
    block_size: BlockSize | None = None


def from_vllm(speculative_config: str) -> Speculation:
    """vLLM's ``--speculative-config``: {"method": "dflash", "model": ..., "num_speculative_tokens": 15}.

    15 speculative tokens are a block of 16: the anchor counts here. Raises UsageError for anything else.
    """
    try:
        said: Any = json.loads(speculative_config)
    except ValueError as error:
        raise UsageError(f"--speculative-config is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise UsageError(f"--speculative-config is a {type(said).__name__}; expected a JSON object")
    if unknown := set(said) - _KNOWN_KEYS:
        raise UsageError(
            f"--speculative-config has {min(unknown)!r}, which is not supported; expected {sorted(_KNOWN_KEYS)}"
        )
    _check_method("--speculative-config's method", said.get("method", _METHOD))
    count = said.get("num_speculative_tokens")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise UsageError(f"num_speculative_tokens is {count!r}; expected a count, for example 15")
    return Speculation(said.get("model"), None if count is None else count + 1)


def from_sglang(
    algorithm: str | None, draft_model_path: str | None, num_draft_tokens: int | None
) -> Speculation:
    """SGLang's three flags; its number of draft tokens is our block size, for both count the anchor."""
    if algorithm is not None:
        _check_method("--speculative-algorithm", algorithm)
    return Speculation(draft_model_path, num_draft_tokens)


def merged(**said: Speculation) -> Speculation:
    """One answer from several places; raises UsageError where two of them disagree."""
    draft, block_size = (
        _agreed(name, {place: getattr(one, name) for place, one in said.items()})
        for name in ("draft", "block_size")
    )
    return Speculation(draft, block_size)


def refuse_foreign(flags: dict[str, tuple[Any, str]]) -> None:
    """Raise UsageError for a flag {name: (value, reason)} that was given: it means nothing to this server."""
    for name, (value, reason) in flags.items():
        if value is not None:
            raise UsageError(f"{name} is not supported: {reason}; leave it out")


def _check_method(where: str, method: Any) -> None:
    if str(method).lower() != _METHOD:
        raise UsageError(f"{where} is {method!r}; expected {_METHOD!r}")


def _agreed(name: str, said: dict[str, Any]) -> Any:
    values = {place: value for place, value in said.items() if value is not None}
    if len(set(values.values())) > 1:
        told = " and ".join(f"{value!r} by the {place} flags" for place, value in values.items())
        raise UsageError(f"{name} is given as {told}; say it once")
    return next(iter(values.values()), None)
