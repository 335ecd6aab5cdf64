"""A server that speaks as much of the Hub's HTTP API as loading a dataset and pushing a model take.

`stand_in_hub.py FOLDER` prints its port.
"""

import base64
import hashlib
import http.server
import json
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Every folder USER/NAME below the root is a dataset repository."""

    root: Path

    def do_GET(self) -> None:
        url = urlparse(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self._about(self.root.joinpath(*parts[2:4]), parts[4:], "recursive=true" in url.query.lower())
        elif parts[:2] == ["api", "models"]:
            self._about(self.root.joinpath("models", *parts[2:4]), [], False)
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._file(self.root.joinpath(*parts[1:3], *parts[5:]))
        else:
            self._answer(404, b"{}")

    do_HEAD = do_GET  # noqa: N815

    def _about(self, repository: Path, rest: list[str], recursive: bool) -> None:
        if not repository.is_dir():
            self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["tree"]:
            folder = repository.joinpath(*rest[2:])
            paths = sorted(folder.rglob("*") if recursive else folder.glob("*"))
            self._answer(200, json.dumps([self._entry(repository, path) for path in paths]).encode())
        else:
            files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": str(path.relative_to(repository))} for path in files]
            about = {"id": "/".join(repository.parts[-2:]), "sha": COMMIT, "private": False, "gated": False, "tags": []}
            self._answer(200, json.dumps({**about, "siblings": siblings}).encode())

    def do_POST(self) -> None:
        """Create a model repository, and commit files to it; all of them come inside the commit, none as LFS."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer hf_good":
            self._answer(401, b'{"error": "Invalid credentials"}')
        elif parts == ["api", "repos", "create"]:
            name = f"someone/{json.loads(body)['name'].split('/')[-1]}"
            (self.root / "models" / name).mkdir(parents=True, exist_ok=True)
            self._answer(200, json.dumps({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name}).encode())
        elif "preupload" in parts:
            wanted = json.loads(body)["files"]
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in wanted]
            self._answer(200, json.dumps({"files": files}).encode())
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = self.root.joinpath("models", *parts[2:4], line["value"]["path"])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self._answer(200, json.dumps({"success": True, "commitOid": COMMIT, "commitUrl": url}).encode())

    @staticmethod
    def _entry(repository: Path, path: Path) -> dict:
        name = str(path.relative_to(repository))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}

    def _file(self, path: Path) -> None:
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
