"""schemathesis over the served OpenAPI document: a real server process with a tiny random target.

    python benchmarks/fuzz_server.py --schemathesis path/to/schemathesis [--cases 150] [--seed 1]

schemathesis lives in an environment of its own (pip install schemathesis); it generates requests from
/openapi.json and holds the answers to it: no server errors, the documented content types, the documented shapes.
The server must also be healthy, and empty, when it is over. Prints schemathesis' account; exits with its status.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

REPO = Path(__file__).resolve().parent.parent
CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemathesis", required=True, help="the command")
    parser.add_argument("--cases", type=int, default=150, help="most cases of an operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = save_target(Path(folder))
        server = start_server(target)
        try:
            assert server.stderr is not None
            url = wait_for_url(server)
            command = [args.schemathesis, "run", f"{url}/openapi.json", "--checks", CHECKS]
            command += [
                "--phases",
                "examples,coverage,fuzzing",
                "--max-examples",
                str(args.cases),
                "--workers",
                "1",
            ]
            command += ["--seed", str(args.seed), "--continue-on-failure"]
            command += ["--request-timeout", "30", "--generation-database", "none", "--warnings", "off"]
            status = subprocess.run(command, cwd=folder, check=False).returncode
            check_idle(url)
        finally:
            server.terminate()
            server.wait(30)
    return status


def save_target(folder: Path) -> Path:
    """The tests' tiny target, with a short context so that no answer takes long."""
    sys.path.insert(0, str(REPO / "tests"))
    from tiny_pair import save_tiny_pair

    target, _ = save_tiny_pair(folder / "pair")
    return Path(target)


def start_server(target: Path) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-c",
        "from flashdraft.cli.main import main; main()",
        "serve",
        str(target),
        "--dtype",
        "float32",
    ]
    command += ["--served-model-name", "tiny", "--port", "0", "--max-answer-tokens", "6", "--max-n", "4"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_url(server: "subprocess.Popen[str]") -> str:
    """The server's address from its log, which is then drained in the background."""
    import threading

    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://[\d.]+:\d+", line):
            threading.Thread(target=echo, args=(server.stderr,), daemon=True).start()
            return found[0]
    raise SystemExit("the server did not start")


def echo(lines: object) -> None:
    for line in lines:  # type: ignore[attr-defined]
        sys.stderr.write(line)


def check_idle(url: str) -> None:
    """The server answers, and nothing is left in it."""
    assert urlopen(f"{url}/health").status == 200
    metrics = urlopen(f"{url}/metrics").read().decode()
    left = [
        line for line in metrics.splitlines() if re.match(r"flashdraft:num_requests_\w+\{.*\} [^0]", line)
    ]
    assert not left, left
    print("the server is healthy and idle; finished answers:")
    print(
        "\n".join(
            line for line in metrics.splitlines() if line.startswith("flashdraft:request_success_total")
        )
    )


if __name__ == "__main__":
    sys.exit(main())
