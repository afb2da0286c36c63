"""From an empty Debian to an answer: installed as the documents say, in a root of its own, each step timed.

    python benchmarks/fresh_root.py --work /tmp/fresh --case bare --python PREFIX_OF_A_PYTHON
    python benchmarks/fresh_root.py --work /tmp/fresh --case pip --torch torch-2.13.0+cpu-....whl
    python benchmarks/fresh_root.py --work /tmp/fresh --case clone

Needs root's rights, debootstrap and the network. Cases: ``bare`` is a Python without any compiler, ``pip install .``
and nothing before it; ``pip`` has Debian's python3 and g++, with PyTorch's CPU build installed first; ``clone`` is
``make demo``. Then `serve`, which the openai client asks for an answer and a stream. Times hold the downloads. Run
again, it goes on where it was cut off.
"""

import argparse
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from flashdraft.provenance import collect_provenance

REPO = Path(__file__).parents[1]
# The host's: where names are looked up, and the certificates that its package index is reached with.
FROM_HOST = {
    "etc/resolv.conf": "etc/resolv.conf",
    "etc/hosts": "etc/hosts",
    "etc/ssl/certs/ca-certificates.crt": "host-certificates.crt",
}
PACKAGES = {
    # Only libraries that CPython's own modules are linked with: neither a compiler nor Debian's Python.
    "bare": "libssl3 libffi8 libsqlite3-0 liblzma5 libbz2-1.0 zlib1g libexpat1 libreadline8 libuuid1",
    "pip": "g++ python3-venv",
    "clone": "make g++ python3-venv",
}
CLIENT = """
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:31777/v1", api_key="EMPTY")
chat = [{"role": "user", "content": "Why is the sky blue?"}]
one = client.chat.completions.create(model="embedded", messages=chat, max_tokens=48, temperature=0)
parts = client.chat.completions.create(model="embedded", messages=chat, max_tokens=48, temperature=0, stream=True)
text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
assert text == one.choices[0].message.content, (text, one)
print(text)
"""


@dataclass
class FreshRoot:
    """A Debian in ``folder``, whose python3 is that of the prefix ``python``; what each step took and said, by name.

    A step that is done is not done again.
    """

    folder: Path
    python: Path
    steps: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self._record = self.folder.with_suffix(".json")
        self.steps = json.loads(self._record.read_text()) if self._record.exists() else {}

    def host(self, name: str, *command: str) -> None:
        """Run ``command`` outside."""
        self._timed(name, list(command))

    def inside(self, name: str, script: str) -> str:
        """Run ``script`` in the root, as its root, with /proc and /dev for as long as it runs; its output."""
        mounts = f"mount -t proc proc {self.folder}/proc && mount --rbind /dev {self.folder}/dev"
        environment = f"HOME=/root PATH={self.python}/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8"
        environment += " PIP_CERT=/host-certificates.crt SSL_CERT_FILE=/host-certificates.crt"
        enter = f'{mounts} && exec chroot {self.folder} /usr/bin/env -i {environment} sh -c "$0"'
        return self._timed(
            name, ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, script]
        )

    def megabytes(self, path: str) -> float:
        """Size of a file or folder of the root."""
        done = subprocess.run(
            ["du", "-sm", "--apparent-size", str(self.folder / path)],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout.split()[0])

    def _timed(self, name: str, command: list[str]) -> str:
        if name in self.steps:
            return str(self.steps[name]["said"])
        started = perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        seconds = round(perf_counter() - started, 1)
        print(f"{name}: {seconds} s", flush=True)
        if done.returncode:
            raise SystemExit(f"{name} ended with code {done.returncode}:\n{done.stdout[-3000:]}")
        lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).strip().splitlines()
        self.steps[name] = {"seconds": seconds, "said": "\n".join(lines[-6:])}
        self._record.write_text(json.dumps(self.steps, indent=1))
        return str(self.steps[name]["said"])


def make_root(case: str, work: Path, python: Path | None) -> FreshRoot:
    """Debian's smallest system, what ``case`` asks apt for, and the tracked files of this repository in /flashdraft."""
    work.mkdir(parents=True, exist_ok=True)
    root = FreshRoot(work / case, python or Path("/usr"))
    root.host("debootstrap", "debootstrap", "--variant=minbase", "bookworm", str(root.folder))
    for name, place in FROM_HOST.items():
        shutil.copyfile(Path("/") / name, root.folder / place)
    root.inside(
        "apt", f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {PACKAGES[case]}"
    )
    if case == "bare":
        assert python is not None, "--case bare needs --python"
        place = root.folder / python.relative_to("/")  # where it was built for
        if not place.exists():
            shutil.copytree(python, place, symlinks=True)
        root.inside("no compiler", "! command -v cc gcc g++ clang make")
    archive = f"git -C {REPO} archive HEAD | tar -x -C {root.folder / 'flashdraft'}"
    (root.folder / "flashdraft").mkdir(exist_ok=True)
    root.host("copy", "sh", "-c", archive)
    return root


def install(root: FreshRoot, case: str, torch: Path | None) -> str:
    """The commands of README and docs/how-to/install.md; where the command ``flashdraft`` then lies."""
    if case == "clone":
        root.inside("make setup", "cd /flashdraft && make setup")
        return "/flashdraft/.venv/bin"
    root.inside("venv", "python3 -m venv /venv")
    if torch:
        shutil.copyfile(torch, root.folder / torch.name)
        root.inside("torch, CPU build", f"/venv/bin/pip install -q /{torch.name}")
    root.inside("pip install .", "cd /flashdraft && /venv/bin/pip install -q .")
    return "/venv/bin"


def use(root: FreshRoot, bin_folder: str) -> None:
    """`demo`, `generate`, `serve` and the openai client."""
    root.inside("demo", f"{bin_folder}/flashdraft demo")
    root.inside("generate", f'{bin_folder}/flashdraft generate --max-tokens 32 "Why is the sky blue?"')
    root.inside("pip install openai", f"{bin_folder}/pip install -q openai")
    (root.folder / "client.py").write_text(CLIENT)
    ready = "from urllib.request import urlopen; urlopen('http://127.0.0.1:31777/ready')"
    root.inside(
        "serve and openai",
        f"""
        {bin_folder}/flashdraft serve --port 31777 2> /serve.log &
        for _ in $(seq 600); do {bin_folder}/python -c "{ready}" 2> /dev/null && break; sleep 0.2; done
        {bin_folder}/python /client.py""",
    )


def sizes(root: FreshRoot, case: str, bin_folder: str) -> dict[str, float]:
    """Megabytes of the environment, of NVIDIA's part of it, and of the wheels, which are built for this alone."""
    environment = str(Path(bin_folder).parent).lstrip("/")
    found = {"environment": root.megabytes(environment)}
    packages = next((root.folder / environment / "lib").glob("python3.*/site-packages"))
    if (packages / "nvidia").is_dir():
        found["nvidia"] = root.megabytes(str((packages / "nvidia").relative_to(root.folder)))
    if case != "clone":
        for name, folder in (("wheel", "."), ("wheel of weights", "src/flashdraft/weights")):
            root.inside(
                name, f"cd /flashdraft/{folder} && /venv/bin/pip wheel -q --no-deps -w '/wheels/{name}' ."
            )
            wheel = next((root.folder / "wheels" / name).glob("*.whl"))
            found[name] = round(wheel.stat().st_size / 1e6, 2)
    return found


def main() -> None:
    """One case, appended to ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="where the root is made; up to 10 GB")
    parser.add_argument("--case", choices=PACKAGES, required=True)
    parser.add_argument("--python", type=Path, help="bare: prefix of a Python, with its libraries")
    parser.add_argument("--torch", type=Path, help="pip: PyTorch's CPU build, a wheel")
    parser.add_argument("--out", type=Path, help="JSON, one object a case")
    args = parser.parse_args()
    root = make_root(args.case, args.work, args.python)
    bin_folder = install(root, args.case, args.torch)
    use(root, bin_folder)
    version = root.inside("version", f"{bin_folder}/python --version").strip()
    result = {"python": version, "megabytes": sizes(root, args.case, bin_folder), "steps": root.steps}
    print(json.dumps(result, indent=1))
    if args.out:
        cases = json.loads(args.out.read_text()) if args.out.exists() else {}
        cases[args.case] = result | {"provenance": collect_provenance()}
        args.out.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
