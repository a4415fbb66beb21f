"""A hub on loopback: the paths, headers, refusals and checks of the Hugging Face hub that `huggingface_hub` 2 talks to, over real sockets.

Repositories are lists of commits, each a whole tree of paths; large files go through the LFS protocol and are checked against their sha256.
Nothing is given to a request without the token where the repository is private, and nothing is written without one.
"""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "loopbackloopbackloopbackloopback12"
LARGE_BYTES = 1 << 12  # from which on a file goes through LFS here; the hub's own limit is 10 MB, and every .safetensors goes through it


def git_sha1(data: bytes) -> str:
    """Return what git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """One repository: its commits, oldest first, each {path: content}."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """Return the newest commit."""
        return next(reversed(self.commits))

    def commit(self, tree: dict[str, bytes]) -> str:
        """Add a commit and return its 40 digits."""
        body = json.dumps([len(self.commits), sorted((path, git_sha1(data)) for path, data in tree.items())])
        oid = hashlib.sha1(body.encode()).hexdigest()
        self.commits[oid] = tree
        return oid

    def tree(self, revision: str) -> dict[str, bytes] | None:
        """Return the files at a commit or at `main`, None for an unknown one."""
        return self.commits.get(self.head if revision == "main" else revision)


@dataclass
class Hub:
    """All repositories, by `datasets/OWNER/NAME` or `models/OWNER/NAME`, and what was asked for."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    """Bytes of files, as they were asked for."""
    failing: int = 0
    """So many of the next uploads of large files fail with status 500."""

    def make(self, name: str, files: dict[str, bytes] | None = None, **options: Any) -> Repository:
        """Add a repository with a first commit."""
        self.repositories[name] = Repository(**options)
        self.repositories[name].commit(dict(files or {}))
        return self.repositories[name]


class Refused(Exception):
    """A status with the hub's error code."""

    def __init__(self, status: int, code: str = "", text: str = "") -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path))
        try:
            status, body, headers = self._route(path)
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.text} if refused.code else {}
            status, body = refused.status, json.dumps({"error": refused.text}).encode()
        self._reply(status, body, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    @property
    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _needs_token(self) -> None:
        if not self._has_token:
            raise Refused(401, text="Invalid username or password.")

    def _repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._has_token):
            raise Refused(404 if self._has_token else 401, "RepoNotFound", "Repository not found")
        return repository

    def _files(self, repository: Repository, revision: str) -> dict[str, bytes]:
        tree = repository.tree(revision)
        if tree is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return tree

    def _route(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            return self._put_large(path.removeprefix("/lfs/"))
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            kind, owner, name, verb, revision, *rest = [*parts[1:], "", "", ""]
            return self._api(f"{kind}/{owner}/{name}", verb, revision, "/".join(filter(None, rest)))
        kind = "datasets" if parts[0] == "datasets" else "models"
        owner, name, verb, revision, *rest = parts[1:] if kind == "datasets" else parts
        if verb == "info":  # OWNER/NAME.git/info/lfs/objects/batch
            return self._lfs_batch(f"{kind}/{owner}/{name.removesuffix('.git')}")
        return self._resolve(f"{kind}/{owner}/{name}", revision, "/".join(rest))

    def _json(self, value: Any, status: int = 200) -> tuple[int, bytes, dict[str, str]]:
        return status, json.dumps(value).encode(), {"Content-Type": "application/json"}

    def _create(self) -> tuple[int, bytes, dict[str, str]]:
        self._needs_token()
        asked = json.loads(self.body)
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{kind}/{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this repo", "url": f"{self.hub.endpoint}/{name.removeprefix('models/')}"}, 409)
        self.hub.make(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=asked.get("visibility") == "private")
        return self._json({"url": f"{self.hub.endpoint}/{name.removeprefix('models/')}", "name": name, "id": name})

    def _api(self, name: str, verb: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        repository = self._repository(name)
        if verb in ("preupload", "commit"):
            self._needs_token()
        elif repository.gated and not self._has_token:
            raise Refused(403, "GatedRepo", "Access to this repo is restricted")
        if verb == "preupload":
            return self._preupload(repository)
        if verb == "commit":
            return self._commit(repository, name)
        if verb == "":
            revision = "main"
        tree = self._files(repository, revision or "main")
        if verb in ("revision", ""):
            oid = repository.head if revision == "main" else revision
            siblings = [{"rfilename": file} for file in tree]
            return self._json({"id": name.partition("/")[2], "sha": oid, "siblings": siblings, "private": repository.private, "tags": []})
        if verb == "paths-info":
            wanted = json.loads(self.body)["paths"]
            return self._json([entry for path in wanted for entry in self._entries(tree, path, exact=True)])
        if verb == "tree":
            if path and not any(file.startswith(f"{path}/") for file in tree):
                raise Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
            entries = self._entries(tree, path)
            if self.query.get("recursive", ["False"])[0].lower() not in ("true", "1"):
                depth = path.count("/") + 1 if path else 0
                entries = [entry for entry in entries if entry["path"].count("/") == depth]
            return self._json(entries)
        raise Refused(404, text=f"no such thing: {verb}")

    def _entries(self, tree: dict[str, bytes], path: str, *, exact: bool = False) -> list[dict[str, Any]]:
        """Return the hub's description of the files below a folder, and of their folders; `exact`: of the path itself."""
        entries: dict[str, dict[str, Any]] = {}
        for file, data in tree.items():
            inside = not path or file.startswith(f"{path}/")
            parts = file.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if (folder == path) if exact else (inside and folder.startswith(f"{path}/" if path else "")):
                    entries.setdefault(folder, {"type": "directory", "path": folder, "oid": git_sha1(folder.encode()), "size": 0})
            if (file == path) if exact else inside:
                entries[file] = {"type": "file", "path": file, "size": len(data), "oid": git_sha1(data)}
                if len(data) >= LARGE_BYTES:
                    entries[file]["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return list(entries.values())

    def _resolve(self, name: str, revision: str, file: str) -> tuple[int, bytes, dict[str, str]]:
        repository = self._repository(name)
        if repository.gated and not self._has_token:
            raise Refused(403, "GatedRepo", "Access to this repo is restricted")
        tree = self._files(repository, revision)
        if file not in tree:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = tree[file]
        etag = hashlib.sha256(data).hexdigest() if len(data) >= LARGE_BYTES else git_sha1(data)
        headers = {"X-Repo-Commit": repository.head if revision == "main" else revision, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if len(data) >= LARGE_BYTES:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{etag}"'}
        span = self.headers.get("Range")
        if span is None:
            self.hub.sent += len(data) if self.command == "GET" else 0
            return 200, data, headers
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, end = int(first), min(len(data), int(last) + 1 if last else len(data))
        if start >= len(data):
            return 416, b"", headers | {"Content-Range": f"bytes */{len(data)}"}
        self.hub.sent += end - start
        return 206, data[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}

    def _preupload(self, repository: Repository) -> tuple[int, bytes, dict[str, str]]:
        tree, files = repository.commits[repository.head], []
        for asked in json.loads(self.body)["files"]:
            there = tree.get(asked["path"])
            large = asked["size"] >= LARGE_BYTES
            oid = None if there is None else hashlib.sha256(there).hexdigest() if len(there) >= LARGE_BYTES else git_sha1(there)
            files.append({"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return self._json({"files": files})

    def _lfs_batch(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        self._needs_token()
        self._repository(name)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}}
            objects.append(entry)
        return self._json({"transfer": "basic", "objects": objects})

    def _put_large(self, oid: str) -> tuple[int, bytes, dict[str, str]]:
        if self.hub.failing:
            self.hub.failing -= 1
            raise Refused(500, text="try later")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, text="the content has another sha256")
        self.hub.large[oid] = self.body
        return 200, b"", {}

    def _commit(self, repository: Repository, name: str) -> tuple[int, bytes, dict[str, str]]:
        tree = dict(repository.commits[repository.head])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise Refused(400, text=f"LFS object {value['oid']} was not uploaded")
                tree[value["path"]] = self.hub.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repository.commit(tree)
        return self._json(
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.hub.endpoint}/{name.removeprefix('models/')}/commit/{oid}",
                "hookOutput": "",
            }
        )


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub without repositories on loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
