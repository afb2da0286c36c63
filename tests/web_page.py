"""Small web servers of a test's own: what answers them, and one that answers all that it is asked with one page."""

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping


class Front(http.server.BaseHTTPRequestHandler):
    """Answers by :meth:`tell`, and logs nothing."""

    def tell(self, status: int, text: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(front: type[Front]) -> Iterator[str]:
    """The URL of a server that answers by ``front``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), front) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def web_page(page: str = "<html><body>hello {you}</body></html>", path: str | None = None) -> Iterator[str]:
    """The URL of the server of one page, which is no model server. ``path``: where it is; None: everywhere."""

    class Page(Front):
        def do_GET(self) -> None:
            self.tell(200 if path in (None, self.path) else 404, page.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    with serving(Page) as url:
        yield url
