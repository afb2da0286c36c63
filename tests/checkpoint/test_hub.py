"""Hub names against a small hub of our own on this machine, and against none."""

import contextlib
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from command_line import run_command
from flashdraft.checkpoint.load import load_target, save_drafter
from flashdraft.errors import CheckpointError, IncompatibleDrafterError
from flashdraft.llm import LLM
from toys import toy_dflash, toy_target
from web_page import Front, serving

COMMIT = "c" * 40


def handler_for(folder, fetched=None, facts=None):
    """Serves ``folder`` as the model tiny/llama, the way a hub does; ``fetched`` gets the names of files sent."""

    class Handler(Front):
        def do_HEAD(self):  # noqa: N802 - the name that http.server looks for
            self.do_GET()

        def do_GET(self):  # noqa: N802 - likewise
            if "/gated/" in self.path:
                self.refuse()
                return
            body = self.body()
            headers = {"ETag": f'"{hashlib.sha1(body or b"").hexdigest()}"', "X-Repo-Commit": COMMIT}
            if body is None:
                self.tell(404, headers=headers | {"X-Error-Code": "RepoNotFound"})
                return
            self.tell(200, body, headers)
            if self.command == "GET" and fetched is not None and body and "/resolve/" in self.path:
                fetched.append(self.path.rpartition("/")[2])

        def refuse(self):
            said = "Access to model is restricted. You must be authenticated."
            self.tell(401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": said})

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
            return json.dumps(
                {"id": "tiny/llama", "sha": COMMIT, "siblings": siblings, **(facts or {})}
            ).encode()

    return Handler


@pytest.fixture
def hub(sharded_folder, tmp_path, monkeypatch):
    """The hub's files; they are served while the test runs."""
    (sharded_folder / "pytorch_model.bin").write_bytes(b"not wanted")
    with serving(handler_for(sharded_folder)) as url:
        use_endpoint(monkeypatch, url, tmp_path / "cache")
        yield sharded_folder


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
    told = (
        r"'tiny/llama' is no local path, and no hub could be asked for it \([^()]* refused\); check the name"
    )
    with pytest.raises(CheckpointError, match=told):
        load_target("tiny/llama")


def test_offline(monkeypatch, tmp_path):
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"could be asked for it \([^()]*`HF_HUB_OFFLINE` [^()]*\); check the name"
    ):
        load_target("tiny/llama")


def test_no_valid_name():
    with pytest.raises(CheckpointError, match=r"'a--b' is no local path"):
        load_target("a--b")


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves a folder as tiny/llama; gives the list of the files that are fetched."""
    with contextlib.ExitStack() as servers:

        def start(folder, **facts):
            fetched = []
            url = servers.enter_context(serving(handler_for(folder, fetched, facts)))
            use_endpoint(monkeypatch, url, tmp_path / "cache")
            return fetched

        yield start


def weights_of(fetched):
    return [name for name in fetched if name.endswith((".safetensors", ".gguf", ".bin"))]


REFUSED = {
    "model_type": "bloom",
    "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "num_hidden_layers": 10**9,
}


@pytest.mark.parametrize("field", REFUSED)
@pytest.mark.parametrize(
    "argv",
    [
        ("generate", "--model", "tiny/llama", "a"),
        ("serve", "tiny/llama"),
        ("doctor", "--model", "tiny/llama", "--draft", "tiny/llama"),
        ("bench", "--model", "tiny/llama", "--draft", "tiny/llama", "--limit", "1", "--out", "rows"),
        ("chat", "--model", "tiny/llama"),
    ],
    ids=lambda argv: argv[0],
)
def test_no_weight_is_fetched_of_what_its_config_refuses(
    serve, sharded_folder, capsys, argv, field, tmp_path, monkeypatch
):
    file = sharded_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: REFUSED[field]}))
    fetched = serve(sharded_folder)
    monkeypatch.chdir(tmp_path)
    result = run_command(argv, capsys)
    assert result.exit_code != 0
    assert "config.json" in fetched
    assert weights_of(fetched) == []
    assert "Traceback" not in result.stderr


def test_no_weight_of_a_pair_is_fetched_when_the_drafter_is_of_another_target(serve, folder, tmp_path):
    save_drafter(toy_dflash(toy_target()), tmp_path / "drafter")
    fetched = serve(folder)
    with pytest.raises(IncompatibleDrafterError, match="made for another target"):
        LLM("tiny/llama", str(tmp_path / "drafter"))
    assert weights_of(fetched) == []


def test_the_size_is_told_and_only_what_is_read_is_fetched(serve, sharded_folder, capsys):
    (sharded_folder / "consolidated.safetensors").write_bytes(b"another copy of the weights")
    shards = sorted(
        {*json.loads((sharded_folder / "model.safetensors.index.json").read_text())["weight_map"].values()}
    )
    fetched = serve(sharded_folder)
    load_target("tiny/llama")
    assert sorted(set(weights_of(fetched))) == shards
    size = sum((sharded_folder / name).stat().st_size for name in shards) / 1e9
    assert f"tiny/llama: fetching {len(shards)} files, {size:.2f} GB" in capsys.readouterr().err
    load_target("tiny/llama")
    assert "fetching" not in capsys.readouterr().err


def test_a_full_disk_is_told_beforehand(serve, folder, monkeypatch):
    fetched = serve(folder)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"tiny/llama takes .* GB more, and .* has room for 0\.0 GB"):
        load_target("tiny/llama")
    assert weights_of(fetched) == []


def test_a_gated_repository_tells_the_hubs_sentence_and_the_login(serve, folder):
    serve(folder)
    with pytest.raises(
        CheckpointError, match=r"is gated: .*You must be authenticated.*hf auth login"
    ) as caught:
        load_target("gated/llama")
    assert "Request ID" not in str(caught.value)


@pytest.fixture
def gguf_repository(tmp_path, make_llama, write_gguf):
    folder = tmp_path / "repository"
    folder.mkdir()
    for kind in ("Q4_K_M", "Q8_0"):
        write_gguf(make_llama(vocab_size=41), {"llama.vocab_size": 41}, path=folder / f"tiny-{kind}.gguf")
    return folder


@pytest.mark.parametrize(("name", "kind"), [("tiny/llama", "Q4_K_M"), ("tiny/llama:Q8_0", "Q8_0")])
def test_a_repository_of_gguf_files(serve, gguf_repository, name, kind):
    fetched = serve(gguf_repository, gguf={"architecture": "llama"})
    assert load_target(name).config.vocab_size == 41
    assert weights_of(fetched) == [f"tiny-{kind}.gguf"]


def test_a_kind_or_architecture_that_is_not_there(serve, gguf_repository):
    fetched = serve(gguf_repository, gguf={"architecture": "llama"})
    with pytest.raises(
        CheckpointError, match=r"has 0 GGUF files of kind Q2_K; .* tiny-Q4_K_M\.gguf, tiny-Q8_0\.gguf"
    ):
        load_target("tiny/llama:Q2_K")
    assert weights_of(fetched) == []


def test_a_gguf_repository_of_another_architecture(serve, gguf_repository):
    fetched = serve(gguf_repository, gguf={"architecture": "mamba"})
    with pytest.raises(CheckpointError, match="architecture 'mamba'; expected one of llama"):
        load_target("tiny/llama")
    assert weights_of(fetched) == []
