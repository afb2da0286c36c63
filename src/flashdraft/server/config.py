"""What a server is told at its start, beside the model: names, limits and keys."""

from dataclasses import dataclass, field
from pathlib import Path

from flashdraft.errors import UsageError


@dataclass(frozen=True)
class ServerConfig:
    """Limits and names of a server. Raises UsageError for a value out of range."""

    model_names: tuple[str, ...] = ("embedded",)  # the first is what answers say
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # none: everybody is served
    allowed_hosts: tuple[str, ...] = (
        "*",
    )  # names that clients without a key may ask for and come from; *: any
    allowed_origins: tuple[str, ...] = ()  # of pages in browsers that may ask and read; *: any; none: no CORS
    max_queue: int = 128  # requests that may wait while others run; more get 429
    max_running_requests: int = 32
    max_per_client: int | None = None  # answers of one client that wait or run; None: 3/4 of all (places.py)
    max_body_bytes: int = 4 << 20
    max_connections: int = 1024  # beyond, one that does not send its request is closed
    client_timeout_s: float = 30  # for a head, for a body at 64 KiB/s and this, for reading what was answered
    max_n: int = 16  # answers of one request, over all its prompts
    max_answer_tokens: int | None = None  # None: what the context leaves
    retry_after_s: int = 1
    log_requests: Path | None = None  # answered requests are appended there; None: nowhere

    def __post_init__(self) -> None:
        for name in ("max_running_requests", "max_body_bytes", "max_connections", "max_n", "retry_after_s"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 < self.client_timeout_s < float("inf"):
            raise UsageError(f"client_timeout_s is {self.client_timeout_s}; expected seconds, above 0")
        if self.max_queue < 0:
            raise UsageError(f"max_queue is {self.max_queue}; expected 0 or more")
        for name in ("max_answer_tokens", "max_per_client"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not all(self.api_keys) or not all(self.model_names):
            raise UsageError("an API key or a model name is empty; expected some text")

    @property
    def capacity(self) -> int:
        """Answers that may be unfinished at one time."""
        return self.max_running_requests + self.max_queue

    @property
    def client_share(self) -> int:
        """Of these, what one client may have."""
        share = -(-3 * self.capacity // 4) if self.max_per_client is None else self.max_per_client
        return min(share, self.capacity)
