"""The command that serves, as a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def server_process(
    pair: list[str], *flags: str, lines: list[str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``flashdraft serve`` on the tiny pair, as a process, and its address; ``lines``: its log before that."""
    argv = [sys.executable, "-c", "from flashdraft.cli.main import main; main()", "serve", *pair[1:]]
    with subprocess.Popen(
        [*argv, "--port", "0", "--served-model-name", "tiny", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stderr
        try:
            found = None
            while found is None:
                line = process.stderr.readline()
                assert line, "the server ended before it served"
                if lines is not None:
                    lines.append(line)
                found = re.search(r"\bserving\b.*(http://[\d.:]+)/v1", line)
            reader = threading.Thread(target=process.stderr.read)  # so that it never waits for a full pipe
            reader.start()
            yield process, found[1]
        finally:
            process.kill()
            process.wait()
            reader.join()
