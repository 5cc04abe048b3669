"""A Hub on this machine for tests: repositories in memory, and the calls that uploads and downloads make over HTTP.

What a client sends is checked as the Hub checks it: who may write, sizes and SHA-256 of LFS objects, the lines of a
commit and the parent it names. A request that doesn't hold is answered with the Hub's status and kept in `problems`.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TYPES = ("models", "datasets", "spaces")
LFS_ENDINGS = (".parquet", ".safetensors", ".bin", ".npz")
LFS_SIZE = 10_000_000
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    """One repository: every commit's files, and the commit that each branch points to."""

    type: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> str | None:
        """The commit that a branch or a commit's own name stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class LoopbackHub:
    """Serves while its `with` block runs.

    Attributes:
        url: of the server.
        tokens: {token: the namespaces it may write to}.
        stored: {"owner/name": Repository}.
        objects: LFS objects that arrived, by SHA-256.
        requests: (method, path, Range header) of every request, in order.
        problems: what clients sent that the Hub would not take.
        expected_problems: those that a test provokes.
        break_uploads: so many LFS uploads lose their connection half way.
        break_downloads: so many downloads of LFS files do.
        before_commit: called, once, when a commit has arrived and is not yet looked at.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, set[str]] = {"hf_x": {"me"}, "hf_other": {"other"}}
        self.stored: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.problems: list[str] = []
        self.expected_problems: list[str] = []
        self.break_uploads = 0
        self.break_downloads = 0
        self.before_commit = None
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def repositories(self) -> dict[str, dict[str, bytes]]:
        """{"owner/name": {path: content}} at the head of main."""
        return {name: each.commits[each.branches["main"]] for name, each in self.stored.items()}

    @property
    def private(self) -> dict[str, bool]:
        """{"owner/name": whether it was made private}."""
        return {name: each.private for name, each in self.stored.items()}

    def asked(self, method: str, part: str) -> int:
        """How often a path with this part was asked for."""
        return sum(each == method and part in path for each, path, _ in self.requests)

    def create(self, name: str, type: str = "models", private: bool = False) -> Repository:
        """A new repository with the first commit that the Hub makes."""
        repository = self.stored[name] = Repository(type, private)
        self.commit(name, "main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repository

    def commit(self, name: str, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """The name of a new commit on a branch, which gets exactly these files."""
        repository = self.stored[name]
        parent = repository.branches.get(branch, "")
        revision = hashlib.sha1(f"{name} {branch} {parent} {len(repository.commits)} {message}".encode()).hexdigest()
        repository.commits[revision] = files
        repository.branches[branch] = revision
        repository.messages.append(message)
        return revision

    def store_folder(self, name: str, folder: Path) -> None:
        """Puts a folder's files into a new model repository, without going through a client."""
        self.create(name)
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for path, content in files.items():
            if is_lfs(path, len(content)):
                self.objects[hashlib.sha256(content).hexdigest()] = content
        self.commit(name, "main", files, "stored")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that a test breaks off needs no traceback."""


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_ENDINGS) or size > LFS_SIZE)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class _RefusedError(Exception):
    """An answer other than 200, as (status, X-Error-Code or "", message)."""


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.take(self.read_calls)

    def do_GET(self) -> None:
        self.take(self.read_calls)

    def do_PUT(self) -> None:
        self.take(self.upload)

    def do_POST(self) -> None:
        self.take(self.write_calls)

    def take(self, answer) -> None:
        """Reads a request whole, and turns a refusal into the answer that the Hub gives."""
        hub = self.server_hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        parts = urlsplit(self.path)
        self.parts, self.query = [unquote(part) for part in parts.path.strip("/").split("/")], parse_qs(parts.query)
        try:
            self.body = b"" if self.command == "PUT" else self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer()
        except _RefusedError as refusal:
            status, code, message = refusal.args
            headers = {"X_Error_Code": code} if code else {}
            self.answer({"error": message}, status, X_Error_Message=message, **headers)
        except OSError:
            # Broken off by a test: the client sees no answer at all.
            self.close_connection = True

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        if status in (400, 422):
            self.server_hub.problems.append(message)
        raise _RefusedError(status, code, message)

    def check(self, holds: bool, message: str, status: int = 400) -> None:
        if not holds:
            self.refuse(status, message)

    # Who asks, and for what

    def namespaces(self) -> set[str] | None:
        """What the request's token may write to; None without a token."""
        words = (self.headers.get("Authorization") or "").split()
        if not words:
            return None
        if words[0] != "Bearer" or words[-1] not in self.server_hub.tokens:
            self.refuse(401, "Invalid credentials in Authorization header")
        return self.server_hub.tokens[words[-1]]

    def check_writer(self, name: str) -> None:
        allowed = self.namespaces()
        if allowed is None:
            self.refuse(401, "Repository not found", "RepoNotFound")
        if name.split("/")[0] not in allowed:
            self.refuse(403, f"You don't have the rights to write to {name}")

    def repository(self, type: str, name: str) -> Repository:
        found, allowed = self.server_hub.stored.get(name), self.namespaces()
        if found is None or found.type != type or (found.private and name.split("/")[0] not in (allowed or ())):
            self.refuse(401 if allowed is None else 404, "Repository not found", "RepoNotFound")
        return found

    def commit_of(self, repository: Repository, revision: str) -> str:
        found = repository.find(revision)
        if found is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def typed_path(self) -> tuple[str, str, list[str]]:
        """Kind of repository, its name, and what comes after it, of a path with or without api/ before it."""
        parts = self.parts[1:] if self.parts[0] == "api" else self.parts
        if parts[0] not in TYPES:
            parts = ["models", *parts]
        if len(parts) < 3:
            self.refuse(404, "Not found", "RepoNotFound")
        return parts[0], "/".join(parts[1:3]), parts[3:]

    # Reading

    def read_calls(self) -> None:
        type, name, rest = self.typed_path()
        repository = self.repository(type, name)
        if rest[:1] == ["resolve"]:
            return self.download(repository, self.commit_of(repository, rest[1]), "/".join(rest[2:]))
        if rest[:1] == ["refs"]:
            branches = [{"name": each, "ref": f"refs/heads/{each}", "targetCommit": commit}
                        for each, commit in repository.branches.items()]  # fmt: skip
            return self.answer({"branches": branches, "tags": [], "converts": []})
        revision = self.commit_of(repository, rest[1] if len(rest) > 1 else "main")
        if rest[:1] == ["tree"]:
            return self.answer(self.tree(repository.commits[revision], rest[2:]))
        return self.answer(
            {
                "id": name,
                "sha": revision,
                "private": repository.private,
                "siblings": [{"rfilename": path} for path in repository.commits[revision]],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def entry(self, path: str, content: bytes) -> dict:
        about = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if is_lfs(path, len(content)):
            about["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return about

    def tree(self, files: dict[str, bytes], folders: list[str]) -> list[dict]:
        folder = "".join(f"{part}/" for part in folders)
        found = {path: content for path, content in files.items() if path.startswith(folder)}
        if folder and not found:
            self.refuse(404, "No such folder", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [self.entry(path, content) for path, content in found.items()]
        inside = {folder + path[len(folder) :].split("/")[0] for path in found if "/" in path[len(folder) :]}
        here = [self.entry(path, content) for path, content in found.items() if "/" not in path[len(folder) :]]
        return [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(inside)] + here

    def download(self, repository: Repository, revision: str, path: str) -> None:
        files = repository.commits[revision]
        if path not in files:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=revision)
            return
        content, lfs = files[path], is_lfs(path, len(files[path]))
        oid = hashlib.sha256(content).hexdigest() if lfs else git_oid(content)
        headers = {"ETag": f'"{oid}"', "X_Repo_Commit": revision, "Accept_Ranges": "bytes"}
        if lfs:
            headers |= {"X_Linked_ETag": f'"{oid}"', "X_Linked_Size": str(len(content))}
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(match[1])
            if start >= len(content):
                self.refuse(416, "Range Not Satisfiable")
            status, headers["Content_Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        if lfs and self.command == "GET" and self.server_hub.break_downloads:
            self.server_hub.break_downloads -= 1
            self.send_response(status)
            for name, value in (headers | {"Content_Length": str(len(content) - start)}).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[start : (start + len(content)) // 2])
            self.hang_up()
        self.answer(content[start:], status, **headers)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(2)
        raise ConnectionError("broken off as the test asked")

    # Writing

    def upload(self) -> None:
        """An LFS object, whose size and SHA-256 must be those that were announced."""
        hub, length = self.server_hub, int(self.headers["Content-Length"])
        if hub.break_uploads:
            hub.break_uploads -= 1
            self.rfile.read(length // 2)
            self.hang_up()
        content, oid = self.rfile.read(length), self.parts[-1]
        size = int(self.query["size"][0])
        self.check(len(content) == size, f"object {oid[:8]} has {len(content)} bytes, announced were {size}")
        self.check(hashlib.sha256(content).hexdigest() == oid, f"object {oid[:8]} has another SHA-256")
        hub.objects[oid] = content
        self.answer(b"")

    def write_calls(self) -> None:
        if self.parts == ["api", "validate-yaml"]:
            wanted = json.loads(self.body)
            errors = [{"message": each} for each in card_problems(wanted["content"])]
            self.server_hub.problems += [each["message"] for each in errors]
            return self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        if self.parts == ["api", "repos", "create"]:
            return self.create(json.loads(self.body))
        type, name, rest = self.typed_path()
        if rest == ["info", "lfs", "objects", "batch"]:
            return self.batch(name.removesuffix(".git"))
        repository = self.repository(type, name)
        if rest[0] == "paths-info":
            wanted = parse_qs(self.body.decode()) if b"=" in self.body[:10] else json.loads(self.body)
            files = repository.commits[self.commit_of(repository, rest[1])]
            return self.answer([self.entry(path, files[path]) for path in wanted["paths"] if path in files])
        self.check_writer(name)
        if rest[0] == "branch":
            return self.branch(repository, "/".join(rest[1:]))
        head = self.commit_of(repository, "/".join(rest[1:]))
        if rest[0] == "preupload":
            return self.answer({"files": [self.upload_mode(each, repository.commits[head])
                                          for each in json.loads(self.body)["files"]]})  # fmt: skip
        self.check(rest[0] == "commit", f"{self.path} is no call that this Hub knows", 404)
        hub = self.server_hub
        if hub.before_commit:
            call, hub.before_commit = hub.before_commit, None
            call()
        with hub.lock:
            self.commit(repository, type, name, "/".join(rest[1:]))

    def create(self, wanted: dict) -> None:
        hub, name = self.server_hub, f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        type = f"{wanted.get('type', 'model')}s"
        self.check_writer(name)
        self.check(type != "spaces" or "sdk" in wanted, "a Space needs an sdk")
        url = f"{hub.url}/{'' if type == 'models' else type + '/'}{name}"
        with hub.lock:
            if name in hub.stored:
                self.answer({"error": "You already created this repo", "url": url}, 409)
                return
            hub.create(name, type, wanted.get("visibility") == "private" or wanted.get("private") is True)
        self.answer({"url": url, "name": name})

    def branch(self, repository: Repository, name: str) -> None:
        if name in repository.branches:
            self.refuse(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[name] = self.commit_of(repository, start)
        self.answer({})

    def upload_mode(self, file: dict, files: dict[str, bytes]) -> dict:
        self.check(len(base64.b64decode(file["sample"])) == min(file["size"], 512), f"sample of {file['path']}")
        lfs, content = is_lfs(file["path"], file["size"]), files.get(file["path"])
        answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if content is not None:
            answer["oid"] = hashlib.sha256(content).hexdigest() if lfs else git_oid(content)
        return answer

    def batch(self, name: str) -> None:
        """Where to send the objects; those that are there already get no address."""
        self.check_writer(name)
        wanted = json.loads(self.body)
        self.check(wanted["operation"] == "upload" and wanted["hash_algo"] == "sha256", "no upload by SHA-256", 422)
        self.check("vnd.git-lfs+json" in self.headers.get("Accept", ""), "no LFS media type", 422)
        for each in wanted["objects"]:
            if each["oid"] not in self.server_hub.objects:
                link = f"{self.server_hub.url}/objects/{each['oid']}?size={each['size']}"
                each["actions"] = {"upload": {"href": link}}
        self.answer({"transfer": "basic", "objects": wanted["objects"]})

    def commit(self, repository: Repository, type: str, name: str, branch: str) -> None:
        hub = self.server_hub
        self.check(self.headers.get("Content-Type") == "application/x-ndjson", "a commit is no ndjson")
        header, *lines = map(json.loads, self.body.splitlines())
        self.check(header["key"] == "header" and bool(header["value"]["summary"]), "a commit without a header")
        self.check(branch in repository.branches, f"{branch} is no branch")
        head = repository.branches[branch]
        if header["value"].get("parentCommit", head) != head:
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            path = value["path"]
            if line["key"] == "file":
                self.check(value["encoding"] == "base64", f"{path} is not in base64")
                content = base64.b64decode(value["content"], validate=True)
                self.check(not is_lfs(path, len(content)), f"{path} must be sent by LFS")
                files[path] = content
            elif line["key"] == "lfsFile":
                content = hub.objects.get(value["oid"])
                self.check(value["algo"] == "sha256" and content is not None, f"the object of {path} never arrived")
                self.check(value["size"] == len(content), f"{path} has {len(content)} bytes, not {value['size']}")
                files[path] = content
            else:
                self.check(line["key"] == "deletedFile" and path in files, f"{line['key']} of {path}")
                del files[path]
        revision = hub.commit(name, branch, files, header["value"]["summary"])
        link = f"{hub.url}/{'' if type == 'models' else type + '/'}{name}/commit/{revision}"
        self.answer({"commitUrl": link, "commitOid": revision, "success": True})


def card_problems(content: str) -> list[str]:
    """What the Hub would say against the head of a card."""
    match = re.match(r"---\n(.*?\n)---\n", content, re.DOTALL)
    if match is None:
        return ["no head"]
    try:
        head = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    problems = []
    bases = head.get("base_model", [])
    if wrong := [each for each in ([bases] if isinstance(bases, str) else bases) if not HUB_ID.fullmatch(each)]:
        problems.append(f'"base_model" with value "{wrong[0]}" is not valid')
    for model in head.get("model-index", []):
        with contextlib.suppress(KeyError):
            for result in model["results"]:
                assert result["task"]["type"]
                assert result["dataset"]["type"]
                assert result["dataset"]["name"]
                assert all(metric["type"] and "value" in metric for metric in result["metrics"])
            continue
        problems.append('"model-index" is not valid')
    return problems
