"""The address that a server has, taken before anything heavy is imported."""

import socket

from flashdraft.errors import UsageError


def listen_on(host: str, port: int) -> socket.socket:
    """A socket that has ``port`` (0: a free one) of ``host``; nobody is heard before it is served.

    Raises UsageError for one that cannot be had.
    """
    mend = "give another --host or --port; --port 0 takes a free one"
    if not 0 <= port <= 65535:
        raise UsageError(f"port is {port}; expected 0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise UsageError(f"the host {host!r} is not known here ({error.strerror}): {mend}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        return listening
    except OSError as error:
        listening.close()
        raise UsageError(f"port {port} of {host} cannot be had ({error.strerror}): {mend}") from None
