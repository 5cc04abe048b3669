"""A Hub on this machine for tests: dataset repositories in memory, with the calls that uploads and downloads make."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class LoopbackHub:
    """Serves while its `with` block runs.

    Attributes:
        url: of the server.
        repositories: {"owner/name": {path: content}}.
        private: {"owner/name": whether it was made private}.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits = 0
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def revision(self) -> str:
        return f"{self.commits:040x}"


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code)

    def split_path(self) -> tuple[list[str], dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).strip("/").split("/"), parse_qs(parts.query)

    def entry(self, path: str, content: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, (parts, query) = self.server_hub, self.split_path()
        if parts[0] == "datasets" and parts[3] == "resolve":
            files = hub.repositories.get("/".join(parts[1:3]))
            path = "/".join(parts[5:])
            if files is None or path not in files:
                return self.missing("RepoNotFound" if files is None else "EntryNotFound")
            etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
            return self.answer(files[path], ETag=etag, X_Repo_Commit=hub.revision)
        if parts[:2] != ["api", "datasets"] or "/".join(parts[2:4]) not in hub.repositories:
            return self.missing("RepoNotFound")
        repository = "/".join(parts[2:4])
        files, rest = hub.repositories[repository], parts[4:]
        if rest[:1] == ["tree"]:
            folder = "".join(f"{part}/" for part in rest[2:])
            found = {path: content for path, content in files.items() if path.startswith(folder)}
            if folder and not found:
                return self.missing("EntryNotFound")
            if query.get("recursive", ["false"])[0].lower() in ("true", "1"):
                return self.answer([self.entry(path, content) for path, content in found.items()])
            folders = {folder + path[len(folder) :].split("/")[0] for path in found if "/" in path[len(folder) :]}
            here = [self.entry(path, content) for path, content in found.items() if "/" not in path[len(folder) :]]
            return self.answer([{"type": "directory", "path": path, "oid": "0" * 40} for path in folders] + here)
        return self.answer(
            {
                "id": repository,
                "sha": hub.revision,
                "private": hub.private[repository],
                "siblings": [{"rfilename": path} for path in files],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server_hub.objects[self.split_path()[0][-1]] = content
        self.answer(b"")

    def do_POST(self) -> None:
        hub, (parts, _) = self.server_hub, self.split_path()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repository = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            hub.repositories.setdefault(repository, {})
            hub.private.setdefault(repository, wanted.get("visibility") == "private" or wanted.get("private") is True)
            return self.answer({"url": f"{hub.url}/datasets/{repository}", "name": repository})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            objects = json.loads(body)["objects"]
            links = [{"upload": {"href": f"{hub.url}/objects/{each['oid']}"}} for each in objects]
            pairs = zip(objects, links, strict=True)
            return self.answer({"transfer": "basic", "objects": [each | {"actions": link} for each, link in pairs]})
        files, rest = hub.repositories["/".join(parts[2:4])], parts[4:]
        if rest[0] == "preupload":
            wanted = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith((".parquet", ".safetensors")) else "regular" for path in wanted]
            pairs = zip(wanted, modes, strict=True)
            return self.answer(
                {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in pairs]}
            )
        if rest[0] == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return self.answer([self.entry(path, files[path]) for path in wanted if path in files])
        if rest[0] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "lfsFile":
                    files[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
            hub.commits += 1
            link = f"{hub.url}/datasets/{'/'.join(parts[2:4])}/commit/{hub.revision}"
            return self.answer({"commitUrl": link, "commitOid": hub.revision, "success": True})
        return self.missing("EntryNotFound")
