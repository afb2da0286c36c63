"""``flashdraft serve`` as a process of its own, for the scripts that measure it from outside."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from urllib.request import urlopen

SERVE = [sys.executable, "-c", "from flashdraft.cli.main import main; main()", "serve"]


@dataclass
class ServerProcess:
    """A server that answers; ``started_s``: from the command to the first green /ready."""

    process: "subprocess.Popen[str]"
    url: str
    started_s: float

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def resident_mb(self) -> float:
        """Memory that the process holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1000

    def cpu_s(self) -> float:
        """Processor seconds that its threads have used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def busy(self) -> list[str]:
        """The lines of /metrics that speak of requests or pages in use."""
        metrics = urlopen(f"{self.url}/metrics").read().decode()
        names = r"num_requests_running|num_requests_waiting|kv_cache_usage_perc"
        return re.findall(rf"^flashdraft:(?:{names})\{{.*\}} (?!0\.0$).*", metrics, re.MULTILINE)


@contextlib.contextmanager
def start_server(flags: Sequence[str], port: int = 0) -> Iterator[ServerProcess]:
    """A server that is ready, until the end of the block."""
    started = perf_counter()
    process = subprocess.Popen([*SERVE, *flags, "--port", str(port)], stderr=subprocess.PIPE, text=True)
    try:
        url = _wait_for_url(process)
        assert urlopen(f"{url}/ready").status == 200
        yield ServerProcess(process, url, perf_counter() - started)
    finally:
        process.terminate()
        process.wait(90)


def _wait_for_url(process: "subprocess.Popen[str]") -> str:
    """The server's address from its log, whose warnings and errors are passed on from then on."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"(?:running on |page=)(http://[\d.]+:\d+)", line):
            threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
            return found[1]
    raise SystemExit(f"the server did not start: {''.join(said)}")


def _pass_on(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if not re.search(r"\bINFO\b", line):
            sys.stderr.write(line)
