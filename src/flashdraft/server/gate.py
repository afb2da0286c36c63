"""Who may come in and with how much: API keys, hosts and the body's size. Wraps the whole application."""

from hashlib import sha256
from hmac import compare_digest

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashdraft.server.api_errors import ApiError
from flashdraft.server.config import ServerConfig
from flashdraft.server.hosts import check_hosts
from flashdraft.server.places import address_of, client_id

# Without a key: the page with its assets (it asks for one), and the probes.
OPEN_PATHS = {"/", "/health", "/ready"}
OPEN_FOLDER = "/assets/"


class Gate:
    """ASGI middleware. Keys are compared as digests in constant time, and never kept or written in clear."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._max_body_bytes = config.max_body_bytes
        self._hosts = ("*",) if config.api_keys else config.allowed_hosts  # a page does not know the key
        self._origins = config.allowed_origins
        self._digests = [sha256(key.encode()).digest() for key in config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass or answer it here."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            check_hosts(headers, self._hosts, scope["path"] in OPEN_PATHS, self._origins)
            if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(OPEN_FOLDER):
                key = self._check_key(
                    headers.get("authorization") or f"Bearer {headers.get('x-api-key', '')}"
                )
                client_id.set(key if len(self._digests) > 1 else address_of(scope))
            self._check_size(int(headers.get("content-length", "0")))
            await self._app(scope, self._counted(receive), _as_declared(send))
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, _as_declared(send))

    def _check_key(self, authorization: str) -> str:
        """The key's digest. Raises ApiError 401 for one that is not among the server's, where it has any."""
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode()).digest()
        matches = [compare_digest(given, digest) for digest in self._digests]  # all of them, always
        if self._digests and not (any(matches) and scheme.lower() == "bearer"):
            raise ApiError(
                401,
                "the API key is missing or wrong; send Authorization: Bearer KEY",
                None,
                "invalid_api_key",
            )
        return given.hex()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            raise ApiError(413, f"the body is larger than {self._max_body_bytes} bytes: shorten the request")

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            self._check_size(num_bytes)  # a body sent in chunks says no length
            return message

        return counted


def _as_declared(send: Send) -> Send:
    """``send``, telling browsers to take each answer for what it says that it is."""

    async def declared(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return declared
