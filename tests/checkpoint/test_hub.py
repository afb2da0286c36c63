"""Hub names against a small hub of our own on this machine, and against none."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from flashdraft.checkpoint.load import load_target
from flashdraft.errors import CheckpointError

COMMIT = "c" * 40


def handler_for(folder):
    """Serves ``folder`` as the model tiny/llama, the way a hub does."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            body = self.body()
            self.send_response(404 if body is None else 200)
            for name, value in (
                ("Content-Length", len(body or b"")),
                ("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"'),
                ("X-Repo-Commit", COMMIT),
                *((("X-Error-Code", "RepoNotFound"),) if body is None else ()),
            ):
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def body(self):
            if "tiny/llama" not in self.path:
                return None
            if "/resolve/" in self.path:
                return (folder / self.path.rpartition("/")[2]).read_bytes()
            files = sorted(folder.iterdir())
            if "/tree/" in self.path:
                entries = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                    for file in files
                ]
                return json.dumps(entries).encode()
            siblings = [{"rfilename": file.name} for file in files]
            return json.dumps({"id": "tiny/llama", "sha": COMMIT, "siblings": siblings}).encode()

    return Handler


@pytest.fixture
def hub(sharded_folder, tmp_path, monkeypatch):
    """The hub's files; they are served while the test runs."""
    (sharded_folder / "pytorch_model.bin").write_bytes(b"not wanted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(sharded_folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    yield sharded_folder
    server.shutdown()
    thread.join()
    server.server_close()


def use_endpoint(monkeypatch, endpoint, cache):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_model_by_name(hub, tmp_path):
    by_name, by_path = load_target("tiny/llama", dtype="float32"), load_target(hub, dtype="float32")
    for name, tensor in by_path.state_dict().items():
        assert torch.equal(by_name.state_dict()[name], tensor)
    assert not list((tmp_path / "cache").rglob("pytorch_model.bin"))


@pytest.mark.usefixtures("hub")
def test_a_revision_is_the_one_that_is_fetched(tmp_path):
    load_target("tiny/llama@v2", dtype="float32")
    assert [ref.name for ref in (tmp_path / "cache").rglob("refs/*")] == ["v2"]


@pytest.mark.usefixtures("hub")
def test_a_name_that_the_hub_does_not_have():
    with pytest.raises(CheckpointError, match=r"'tiny/lama' is no local path, and no hub .*; check the name"):
        load_target("tiny/lama")


def test_no_hub(monkeypatch, tmp_path):
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(
        CheckpointError, match=r"no hub gave .*download the model elsewhere and give its local folder"
    ):
        load_target("tiny/llama")


def test_offline(monkeypatch, tmp_path):
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"no hub gave .*download the model elsewhere and give its local folder"
    ):
        load_target("tiny/llama")


def test_no_valid_name():
    with pytest.raises(CheckpointError, match=r"'a--b' is no local path"):
        load_target("a--b")
