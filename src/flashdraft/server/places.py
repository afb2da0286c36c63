"""Who holds the server's places: what waits or runs, counted by client, so that nobody takes them all.

A client is its API key where the server has several, else its address: what nginx's ``limit_conn`` counts by as well
($binary_remote_addr). Of IPv6 it is the network of 64 bits, which one subscriber has as a whole.

A client has at most its share, three quarters of all places by default. A load generator that is alone so fills every
running place and most of the queue, and whoever else comes still finds a place. What a client asks beyond its share of
the *running* places has a later turn than what others ask within theirs, and makes room for that at once. Within
the share it is first come, first served. A gateway is one client, unless it tells the addresses behind it
(X-Forwarded-For, which uvicorn believes of the proxies in FORWARDED_ALLOW_IPS). A share of all places switches this
off.
"""

from collections import Counter
from contextvars import ContextVar
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

from flashdraft.server.api_errors import ApiError

# Of the request that is being answered; the gate sets it. None: a call from within the process.
client_id: ContextVar[str | None] = ContextVar("client_id", default=None)


def address_of(scope: Scope) -> str:
    """What a client without a key of its own is known by."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(host)
    except ValueError:  # a socket of the file system, or a proxy that tells no address
        return str(host)
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
    return host


class Places:
    """``capacity`` places of one kind (``what``, for messages), of which one client may have ``share``."""

    def __init__(self, what: str, capacity: int, share: int, retry_after_s: int) -> None:
        self._what, self._capacity, self._retry_after_s = what, capacity, retry_after_s
        self.share = min(share, capacity)
        self._held: Counter[str | None] = Counter()

    @property
    def num_held(self) -> int:
        """Places taken, by all clients."""
        return self._held.total()

    def check(self, num: int) -> None:
        """Raise ApiError 429 where ``num`` more places are not there, or not for this client.

        Where nobody has any, one request is never too large: what it may ask has a limit of its own.
        """
        held = self.num_held
        if held and held + num > self._capacity:
            self._refuse(f"{held} {self._what} are under way and at most {self._capacity} may be")
        held = self._held[client_id.get()]
        if held and held + num > self.share:
            self._refuse(f"{held} {self._what} of yours are under way and at most {self.share} may be")

    def _refuse(self, why: str) -> None:
        raise ApiError(429, f"{why}: try again", code="queue_full", retry_after_s=self._retry_after_s)

    def take(self, num: int) -> "HeldPlaces":
        """``num`` places, until they are given back. Raises ApiError 429, see :meth:`check`."""
        self.check(num)
        return HeldPlaces(self._held, num)


class HeldPlaces:
    """Places of one client. ``first``: how many it had before."""

    def __init__(self, held: "Counter[str | None]", num: int) -> None:
        self._held, self.client, self._num = held, client_id.get(), num
        self.first = held[self.client]
        held[self.client] += num

    def give_back(self) -> None:
        """They are free; more than once is once."""
        self._held[self.client] -= self._num
        self._num = 0
        if not self._held[self.client]:
            del self._held[self.client]  # strangers' addresses are not kept
