"""A server that speaks as much of the Hub's HTTP API as loading a dataset, pushing to a repository and fetching from one take.

`stand_in_hub.py FOLDER` prints its port. In FOLDER: USER/NAME is a dataset repository, models/USER/NAME one of a model;
commits.jsonl has a line for each commit, with what every file held; trouble.json, where there is one, says what goes wrong:
a list of {"at": part of "METHOD /path", "times": N} with "status": CODE, "seconds": DELAY, or neither: it is dropped.
The only user is someone; what begins with others/ may be read and not written.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40
LARGE = (".safetensors", ".bin", ".pkl", ".arrow", ".png")  # what goes the way of large files
TOKEN, READER = "hf_good", "hf_reads"
LICENCES = ("mit", "apache-2.0", "cc-by-4.0", "other")


@contextlib.contextmanager
def running(root: Path):
    """The address of a server for this folder."""
    root.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, __file__, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


def environment(address: str, folder: Path) -> dict[str, str]:
    """Of a process that takes the server for the Hub."""
    return {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def reach(address: str, folder: Path, monkeypatch) -> None:
    """The same for this process, and for those that it starts; what fails is tried again at once."""
    for name, value in environment(address, folder).items():
        monkeypatch.setenv(name, value)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (("ENDPOINT", address), ("HF_HUB_OFFLINE", False), ("HUGGINGFACE_CO_URL_TEMPLATE", template)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("wavtrain.hub.uploads.WAITS", (0.1, 0.1, 0.1))


def trouble(root: Path, *what: dict) -> None:
    """What goes wrong from now on."""
    (root / "trouble.json").write_text(json.dumps([{"times": 99, **each} for each in what]))


def commits(root: Path) -> list[dict]:
    path = root / "commits.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Hub(http.server.BaseHTTPRequestHandler):
    root: Path
    private: set[Path] = set()  # noqa: RUF012 (of the whole server)
    troubled: dict[str, int] = {}  # noqa: RUF012 (how often each trouble has been made)
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._is_troubled():
            return
        url = urlparse(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            may = {f"Bearer {TOKEN}": "write", f"Bearer {READER}": "read"}.get(self.headers.get("Authorization"))
            me = {"name": "someone", "orgs": [{"name": "some_lab"}], "auth": {"accessToken": {"role": may}}}
            self._answer(200 if may else 401, json.dumps(me).encode())
            return
        if parts[0] == "api" and parts[1] in ("datasets", "models"):
            self._about(self._repository(parts[1], parts[2:4]), parts[4:], "recursive=true" in url.query.lower())
            return
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if parts[2:3] == ["resolve"]:
            self._file(self._repository(kind, parts[:2]), parts[4:])
        else:
            self._answer(404, b"{}")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Create a repository, or one of the three steps of a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._is_troubled():
            return
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if not self._is_known():
            self._answer(401, b'{"error": "Invalid credentials"}')
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self._validate(json.loads(body)["content"])
        elif "preupload" in parts:
            files = [{"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                      "shouldIgnore": False} for each in json.loads(body)["files"]]
            self._answer(200, json.dumps({"files": files}).encode())
        elif parts[-2:] == ["objects", "batch"]:
            self._batch(json.loads(body)["objects"])
        elif parts[-1] == "verify":
            self._answer(200 if (self.root / "large" / parts[1]).stat().st_size == json.loads(body)["size"] else 400, b"{}")
        else:
            self._commit(parts, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        """A large file, without a token, as to a store of objects."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._is_troubled():
            return
        oid = self.path.rsplit("/", 1)[-1]
        is_whole = hashlib.sha256(body).hexdigest() == oid
        if is_whole:
            (self.root / "large").mkdir(exist_ok=True)
            part = self.root / f"large-{threading.get_ident()}"  # two files of one content come at once
            part.write_bytes(body)
            part.rename(self.root / "large" / oid)
        self._answer(200 if is_whole else 400, b"")

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, kind: str, parts: list[str]) -> Path:
        return self.root.joinpath(*(["models"] if kind == "models" else []), *parts)

    def _is_troubled(self) -> bool:
        path = self.root / "trouble.json"
        for number, trouble in enumerate(json.loads(path.read_text()) if path.exists() else ()):
            with self.lock:
                key = f"{number}{trouble}"
                is_due = trouble["at"] in f"{self.command} {self.path}" and self.troubled.get(key, 0) < trouble["times"]
                self.troubled[key] = self.troubled.get(key, 0) + is_due
            if is_due and "seconds" in trouble:
                time.sleep(trouble["seconds"])
            elif is_due and "status" in trouble:
                self._answer(trouble["status"], b'{"error": "as the test wants it \x1b[31m"}')
                return True
            elif is_due:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        kind = "datasets" if wanted.get("type") == "dataset" else "models"
        repository = self._repository(kind, name.split("/"))
        is_new = not repository.is_dir()
        repository.mkdir(parents=True, exist_ok=True)
        if is_new and (wanted.get("private") or wanted.get("visibility") == "private"):
            self.private.add(repository)
        url = f"http://{self.headers['Host']}/{'datasets/' if kind == 'datasets' else ''}{name}"
        self._answer(200 if is_new else 409, json.dumps({"url": url, "name": name, "id": name}).encode())

    def _validate(self, card: str) -> None:
        licence = next((line.partition(": ")[2] for line in card.splitlines() if line.startswith("license: ")), "mit")
        faults = [] if licence in LICENCES else [{"message": f'"license" must be one of {", ".join(LICENCES)}'}]
        self._answer(400 if faults else 200, json.dumps({"errors": faults, "warnings": []}).encode())

    def _batch(self, objects: list[dict]) -> None:
        answer = []
        for each in objects:
            where = f"http://{self.headers['Host']}/large/{each['oid']}"
            is_there = (self.root / "large" / each["oid"]).exists()
            steps = {"upload": {"href": where}, "verify": {"href": f"{where}/verify"}}
            answer.append({**each, **({} if is_there else {"actions": steps})})
        self._answer(200, json.dumps({"transfer": "basic", "objects": answer}).encode())

    def _commit(self, parts: list[str], lines: list[dict]) -> None:
        name, files = "/".join(parts[2:4]), {}
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = (self.root / "large" / value["oid"]).read_bytes()
        for path, content in files.items():
            target = self._repository(parts[1], [*parts[2:4], path])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        told = {"repository": name, "message": lines[0]["value"]["summary"], "files": digests}
        with self.lock, open(self.root / "commits.jsonl", "a") as log:
            log.write(f"{json.dumps(told)}\n")
        url = f"http://{self.headers['Host']}/{'datasets/' if parts[1] == 'datasets' else ''}{name}/commit/{COMMIT}"
        self._answer(200, json.dumps({"success": True, "commitOid": COMMIT, "commitUrl": url}).encode())

    def _is_hidden(self, repository: Path) -> bool:
        if repository.is_dir() and (repository not in self.private or self._is_known()):
            return False
        code = 401 if repository in self.private else 404
        self._answer(code, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        return True

    def _about(self, repository: Path, rest: list[str], recursive: bool) -> None:
        if self._is_hidden(repository):
            return
        if rest == ["auth-check", "write"]:
            self._answer(401 if not self._is_known() else 403 if repository.parent.name == "others" else 200, b"{}")
        elif rest[:1] == ["tree"]:
            folder = repository.joinpath(*rest[2:])
            paths = sorted(folder.rglob("*") if recursive else folder.glob("*"))
            self._answer(200, json.dumps([self._entry(repository, path) for path in paths]).encode())
        else:
            files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": str(path.relative_to(repository)), "size": path.stat().st_size} for path in files]
            about = {"id": "/".join(repository.parts[-2:]), "sha": COMMIT, "private": repository in self.private,
                     "gated": False, "tags": []}
            self._answer(200, json.dumps({**about, "siblings": siblings}).encode())

    @staticmethod
    def _entry(repository: Path, path: Path) -> dict:
        name = str(path.relative_to(repository))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}

    def _file(self, repository: Path, parts: list[str]) -> None:
        path = repository.joinpath(*parts)
        if self._is_hidden(repository):
            return
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        body = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if wanted:
            first, _, last = wanted.partition("-")
            last = min(int(last or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body = body[int(first) : last + 1]
        self._answer(206 if wanted else 200, body, headers)

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_port, flush=True)
    server.serve_forever()
