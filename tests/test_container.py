"""The container file, where a builder and its base image can be had: built, and its server answers.

The base is pulled, or, for a machine without a registry of images, is the local image that FLASHDRAFT_BASE_IMAGE names;
FLASHDRAFT_BUILD_FLAGS: more words for the builder, such as where packages lie.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

REPO = Path(__file__).parent.parent
IMAGE, NAME, PORT = "localhost/flashdraft-test", "flashdraft-test", 30977


def buildah(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["buildah", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def image() -> Iterator[dict[str, list[str]]]:
    """The built image's config; the container NAME is made of it, not started."""
    if shutil.which("buildah") is None:
        pytest.skip("there is no buildah on the path (Debian: apt-get install buildah)")
    file = REPO / "deploy" / "Dockerfile"
    base = os.environ.get("FLASHDRAFT_BASE_IMAGE")
    flags = shlex.split(os.environ.get("FLASHDRAFT_BUILD_FLAGS", ""))
    if base is None:
        wanted = next(line for line in file.read_text().splitlines() if line.startswith("ARG BASE="))
        pulled = buildah("pull", "--quiet", f"docker.io/library/{wanted.partition('=')[2]}")
        if pulled.returncode:
            pytest.skip(f"the base image cannot be had: {pulled.stderr.strip().splitlines()[-1]}")
    else:
        flags += ["--build-arg", f"BASE={base}"]
    built = buildah("build", "--isolation", "chroot", *flags, "--file", str(file), "--tag", IMAGE, str(REPO))
    assert built.returncode == 0, built.stderr[-3000:]
    made = buildah("from", "--name", NAME, IMAGE)
    assert made.returncode == 0, made.stderr
    described = json.loads(buildah("inspect", "--type", "image", IMAGE).stdout)
    yield described["OCIv1"]["config"]
    buildah("rm", NAME)
    buildah("rmi", "--force", IMAGE)


@pytest.mark.slow
def test_its_server_answers_as_its_user(image: dict[str, list[str]]) -> None:
    command = ["buildah", "run", "--isolation", "chroot", NAME, "--"]
    who = subprocess.run([*command, "id", "-un"], capture_output=True, text=True, check=True)
    assert who.stdout.strip() == image["User"] == "flashdraft"
    with subprocess.Popen([*command, *image["Entrypoint"], "--port", str(PORT)]) as server:
        try:
            chat = {"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
            request = Request(
                f"http://127.0.0.1:{PORT}/v1/chat/completions",
                json.dumps(chat).encode(),
                {"Content-Type": "application/json"},
            )
            answer = None
            while answer is None:
                assert server.poll() is None, "the server ended"
                try:
                    answer = json.load(urlopen(request))
                except URLError:
                    sleep(0.5)
            assert answer["usage"]["completion_tokens"] == 8
        finally:
            server.terminate()
