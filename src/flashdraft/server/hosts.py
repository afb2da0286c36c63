"""Which page in a browser may ask: a server without a key that listens on this machine alone is meant for it alone.

Any page that its user looks at can send requests to it; a page whose name is made to point here (DNS rebinding) can
read the answers too. Neither can change the headers that tell: Host, Origin and Sec-Fetch-Site. As Jupyter does it.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from flashdraft.server.api_errors import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = "*"


def is_loopback(host: str) -> bool:
    """Whether who listens on ``host`` is heard on this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_hosts(headers: Headers, allowed: Sequence[str], is_page: bool, origins: Sequence[str] = ()) -> None:
    """Raise ApiError 403 for a request that was sent to another name, or from another name's page.

    ``allowed``: host names. ``is_page``: a browser may come from anywhere to look at it. ``origins``: of pages that may
    ask whatever their host is.
    """
    if ANY in allowed:
        return
    for name in ("host", "origin"):
        for said in headers.getlist(name):
            if name == "origin" and (said in origins or ANY in origins):
                continue
            host = _hostname(said, is_url=name == "origin")
            if host is None or (host not in allowed and not host.endswith(".localhost")):
                raise ApiError(
                    403,
                    f"{name} is {said[:200]!r}; expected {', '.join(allowed)}: start the server with an API key, or"
                    " with --allowed-hosts and this name",
                    code="host_not_allowed",
                )
    if headers.get("sec-fetch-site") == "cross-site" and "origin" not in headers and not is_page:
        raise ApiError(403, "another site's page asks; expected this server's own", code="host_not_allowed")


def _hostname(said: str, is_url: bool) -> str | None:
    try:
        parts = urlsplit(said if is_url else f"//{said}")
        return parts.hostname
    except ValueError:
        return None
