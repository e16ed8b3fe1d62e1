"""The upload to the hub, to a stand-in of its API on this machine: exactly the folder's files arrive."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from distilens.deploy.hub import push_to_hub
from distilens.foundation.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of huggingface_hub itself
FILES = {
    "model.safetensors": bytes(range(256)) * 8,
    "config.json": b'{"a": 1}',
    "model.json": b"{}",
    "README.md": b"---\ntags: [a]\n---\n# a\n",
}


class Hub(ThreadingHTTPServer):
    """What the hub holds, and how it answers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuses: dict[str, int] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """The calls of huggingface_hub for a new repository and one commit with a large file."""

    server: Hub

    def do_GET(self):
        repo = self.path.removeprefix("/api/models/")
        self.answer({"id": repo} if repo in self.server.repos else {}, 200 if repo in self.server.repos else 404)

    def do_PUT(self):
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        self.server.tokens.add(self.headers.get("authorization", ""))
        body, path, hub = self.body(), self.path, self.server
        for part, status in hub.refuses.items():
            if part in path:
                return self.answer({"error": f"no {part}"}, status)
        if path == "/api/repos/create":
            made = json.loads(body)
            repo = f"{made['organization']}/{made['name']}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {})
            hub.visibility.setdefault(repo, made["visibility"])
            return self.answer({"url": f"{hub.address}/{repo}"}, 409 if known else 200)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        assert "/commit/" in path, path
        repo = path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.repos[repo][value["path"]] = hub.large[value["oid"]]
        return self.answer({"commitUrl": f"{hub.address}/{repo}/commit/1", "commitOid": "1"})

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol for large files
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_exactly_the_files_of_the_folder_arrive(hub, folder):
    assert push_to_hub(folder, "me/student", token="hf_mine") == f"{hub.address}/me/student"
    assert hub.repos == {"me/student": FILES}
    assert hub.visibility == {"me/student": "private"}
    assert hub.tokens == {"Bearer hf_mine"}


def test_a_second_upload_replaces_what_has_changed(hub, folder):
    push_to_hub(folder, "me/student", private=False, token="hf_mine")
    (folder / "model.safetensors").write_bytes(b"new")
    push_to_hub(folder, "me/student", token="hf_mine")
    assert hub.repos == {"me/student": {**FILES, "model.safetensors": b"new"}}
    assert hub.visibility == {"me/student": "public"}


@pytest.mark.parametrize(
    ("refuses", "expected"),
    [
        ({"repos/create": 401}, "does not accept the token: log in with: hf auth login"),
        ({"repos/create": 403}, "you may not write to me"),
        ({"repos/create": 404}, "no organisation me"),
        ({"repos/create": 418}, "the hub answered: no repos/create"),
        ({"commit": 403}, "you may not write to me"),
        ({"lfs": 403}, "you may not write to me"),
    ],
)
def test_what_the_hub_refuses_is_explained(hub, folder, refuses, expected):
    hub.refuses = refuses
    with pytest.raises(UserError, match=expected):
        push_to_hub(folder, "me/student", token="hf_mine")
    assert not hub.repos.get("me/student")


def test_what_is_wrong_before_anything_is_sent(hub, folder, monkeypatch, tmp_path_factory):
    with pytest.raises(UserError, match="OWNER/NAME"):
        push_to_hub(folder, "student", token="hf_mine")
    with pytest.raises(UserError, match="cannot be a repository of the hub"):
        push_to_hub(folder, "me/a student?", token="hf_mine")
    with pytest.raises(UserError, match="there is no model in"):
        push_to_hub(tmp_path_factory.mktemp("empty"), "me/student", token="hf_mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"not logged in .* hf auth login"):
        push_to_hub(folder, "me/student")
    assert not hub.tokens
    assert not hub.repos


def test_without_a_network(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached"):
        push_to_hub(folder, "me/student", token="hf_mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(folder, "me/student", token="hf_mine")
