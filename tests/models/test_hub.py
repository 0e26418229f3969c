"""Names to folders, against a stand-in for the hub that speaks HTTP and counts what it is asked."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import pytest

from crossrank.errors import CheckpointNotFoundError, InputError
from crossrank.models import hub
from crossrank.models.hub import BUILT_IN, DEFAULT_MODELS, is_offline, resolve

GOLDEN = Path(__file__).parent.parent / "golden"
COMMIT = "1" * 40
OLD_COMMIT = "2" * 40


def repository():
    """A modular model with much besides that nobody needs."""
    source = GOLDEN / "sbert_modular_cross_encoder"
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and not path.name.startswith("expected")
    }
    wanted = set(files)
    wanted.add("README.md")  # the card may say what kind the model is of
    files["README.md"] = b"# A model"
    for name in ("onnx/model.onnx", "onnx/model_qint8.onnx", "pytorch_model.bin", "modeling.py"):
        files[name] = b"not needed"
    files["openvino/openvino_model.safetensors"] = b"not needed"
    return files, wanted


class StandIn(BaseHTTPRequestHandler):
    """The few endpoints that fetching a snapshot needs."""

    repositories: ClassVar[dict] = {}
    requests: ClassVar[list] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, *, body):
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        if api:
            parts = parts[2:]
        name = "/".join(parts[:2])
        if name == "someone/gated":
            return self.send(403, {"X-Error-Code": "GatedRepo"}, b"", body)
        if name not in self.repositories:
            return self.send(401, {"X-Error-Code": "RepoNotFound"}, b"", body)
        verb, revision = parts[2], parts[3]
        revisions = {"main": COMMIT, COMMIT: COMMIT, "v1": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT}
        if revision not in revisions:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
        files = dict(self.repositories[name])
        if revisions[revision] == OLD_COMMIT:
            files["README.json"] = b'{"version": 1}'
        if api and verb == "revision":
            siblings = [{"rfilename": file} for file in files]
            content = {"id": name, "sha": revisions[revision], "siblings": siblings}
        elif api and verb == "tree":
            content = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
        else:
            data = files["/".join(parts[4:])]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": revisions[revision]}
            return self.send(200, headers, data, body)
        return self.send(200, {"Content-Type": "application/json"}, json.dumps(content).encode(), body)

    def send(self, status, headers, data, body):
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    files, _ = repository()
    only_onnx = {
        name: data for name, data in files.items() if not name.endswith(".safetensors") or "/" in name
    }
    StandIn.repositories = {
        "someone/reranker": files,
        "someone/onnx": {name: data for name, data in only_onnx.items() if "Dense" not in name},
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


CLIENT = """
import json, sys
from crossrank.errors import CheckpointNotFoundError
from crossrank.models.hub import resolve

for name, revision, *source in json.loads(sys.argv[1]):
    try:
        options = {"source": source[0]} if source else {}
        folder = resolve(name, kind="cross-encoder", revision=revision, **options)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        print(json.dumps({"folder": str(folder), "files": files}))
    except CheckpointNotFoundError as error:
        print(json.dumps({"error": str(error)}))
if "score" in sys.argv:
    from crossrank.models.cross_encoder import CrossEncoder

    model = CrossEncoder(name, revision=revision, threads=1)
    print(json.dumps({"name": model.name, "scores": model.score([("cat", "dog")]).ravel().tolist()}))
"""


def client(server, home, names, *extra, **environment):
    """Resolve names in a fresh process (the hub's library reads its settings once)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    result = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(names), *extra],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **clean,
            "HF_ENDPOINT": server,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        },
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def fetched(server, tmp_path_factory):
    """Everything a client with the network gets, and the folder of its cache."""
    home = tmp_path_factory.mktemp("home")
    names = [
        ["someone/reranker", "v1"],
        ["someone/onnx", None],
        ["someone/nothing", None],
        ["someone/reranker", "v9"],
        ["someone/gated", None],
        ["someone/reranker", None],
    ]
    return home, client(server, home, names, "score")


def test_only_what_decides_a_score_is_fetched(fetched):
    _, answers = fetched
    _, wanted = repository()
    assert set(answers[5]["files"]) == wanted
    assert not [request for request in StandIn.requests if "modeling.py" in request or ".bin" in request]
    assert (answers[6]["name"], len(answers[6]["scores"])) == ("someone/reranker", 1)


def test_a_pinned_revision_is_that_revision(fetched):
    _, answers = fetched
    assert answers[0]["folder"].endswith(OLD_COMMIT)
    assert "README.json" in answers[0]["files"]
    assert answers[5]["folder"].endswith(COMMIT)


def test_onnx_files_come_where_there_are_no_weights(fetched):
    _, answers = fetched
    assert "onnx/model.onnx" in answers[1]["files"]
    assert "onnx/model_qint8.onnx" not in answers[1]["files"]


def test_onnx_files_come_where_they_are_asked_for(server, tmp_path):
    (answer,) = client(server, tmp_path, [["someone/reranker", None, "onnx"]])
    assert "onnx/model.onnx" in answer["files"]
    assert "onnx/model_qint8.onnx" not in answer["files"]


def test_errors_say_what_to_do(fetched):
    _, answers = fetched
    assert "neither a local folder nor a public model on the hub" in answers[2]["error"]
    assert "someone/reranker has no revision v9" in answers[3]["error"]
    assert "licence accepted" in answers[4]["error"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_no_request_at_all(server, fetched, variable):
    home, online = fetched
    before = len(StandIn.requests)
    names = [
        ["someone/other", None],
        ["someone/onnx", None],
        ["someone/reranker", OLD_COMMIT],
        ["someone/reranker", None],
    ]
    answers = client(server, home, names, "score", **{variable: "1"})
    assert len(StandIn.requests) == before
    assert "not (complete) in the local hub cache" in answers[0]["error"]
    assert "hf download someone/other" in answers[0]["error"]
    assert answers[1:4] == [online[1], online[0], online[5]]
    assert answers[4] == online[6]


def test_a_hub_that_is_down(fetched):
    home, online = fetched
    names = [["someone/reranker", None], ["someone/other", None]]
    answers = client("http://127.0.0.1:9", home, names)
    assert answers[0] == online[5]  # what is in the cache still opens
    assert "hub cannot be reached" in answers[1]["error"]


def test_local_folders(tmp_path, monkeypatch):
    folder = tmp_path / "some" / "model"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(folder, kind="bi-encoder") == folder
    assert resolve("some/model", kind="bi-encoder") == Path("some/model")  # before the hub
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        resolve("file", kind="bi-encoder")
    with pytest.raises(InputError, match="revision is 'v1', but some/model is on this machine"):
        resolve("some/model", kind="bi-encoder", revision="v1")


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/folder", "a/b/c", "~/nothing", "", "-x/y", Path("a/b")]
)
def test_what_can_be_no_hub_name_is_a_missing_folder(name):
    with pytest.raises(CheckpointNotFoundError, match=r"there is no folder .*crossrank-mini"):
        resolve(name, kind="cross-encoder")


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", Path("a" * 5000), "~nobody-of-this-name/x"])
def test_names_that_no_folder_can_have(name):
    with pytest.raises(CheckpointNotFoundError, match=r"cannot be opened|there is no folder"):
        resolve(name, kind="cross-encoder")


@pytest.mark.parametrize("name", [5, b"abc", ["a"]])
def test_what_is_no_name(name):
    with pytest.raises(InputError, match="model must be a name or a folder, not"):
        resolve(name, kind="cross-encoder")


def test_built_in_models(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.importlib.resources, "files", lambda package: tmp_path)
    for name, kind in BUILT_IN.items():
        with pytest.raises(CheckpointNotFoundError, match="install crossrank again"):
            resolve(name, kind=kind)
        (tmp_path / "builtin" / name).mkdir(parents=True)
        (tmp_path / "builtin" / name / "config.json").write_text("{}")
        assert resolve(name, kind=kind) == tmp_path / "builtin" / name
        with pytest.raises(InputError, match=f"revision is 'main', but {name} is on this machine"):
            resolve(name, kind=kind, revision="main")
    assert {kind: resolve(None, kind=kind).name for kind in DEFAULT_MODELS} == DEFAULT_MODELS


def test_offline_is_read_at_every_call(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    for value, expected in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert is_offline() is expected
