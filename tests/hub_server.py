"""A stand-in for the Hub: the part of its HTTP API that pushing and pulling a model uses, in memory, on a local port.

The real `huggingface_hub` client talks to it (`HF_ENDPOINT`, without Xet: `HF_HUB_DISABLE_XET=1`). Like the Hub it keeps
commits, stores large files apart by their SHA-256 and takes them only once, checks tokens and namespaces, and validates the
metadata of cards. Faults can be injected. Not imitated: pull requests, branches but `main`, multipart uploads, gating.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".onnx", ".pt")
"""Names that the Hub stores as large files (its default `.gitattributes`); so is everything of more than 5 MB."""

PIPELINE_TAGS = {"token-classification", "feature-extraction", "text-classification", "fill-mask"}
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "bsd-3-clause", "gpl-3.0", "other", "unknown"}
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its bytes, and whether it is stored as a large file."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What the Hub names it by: SHA-256 of a large file, git's SHA-1 of another."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """A model repository: its commits, newest last, each a commit hash and the files by path."""

    private: bool = False
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[-1][1]

    def commit(self, files: dict[str, Blob], title: str) -> str:
        seed = json.dumps([len(self.commits), title, sorted((path, blob.oid) for path, blob in files.items())])
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubServer:
    """The server; use it as a context manager.

    Args:
        tokens: access tokens and their accounts.
        members: organizations of each account.
    Attributes:
        endpoint: its address, for `HF_ENDPOINT`.
        repositories: what it holds, by id.
        received: every body that a client has sent, in order, whole or not.
        uploads: SHA-256 of every large file that arrived whole, in order.
        requests: "METHOD path" of every request, in order.
        drop_uploads: so many of the next uploads of large files are cut off half-way (`math.inf`: all).
    """

    def __init__(self, tokens: dict[str, str], members: dict[str, list[str]] | None = None):
        self.tokens = tokens
        self.members = members or {}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[bytes] = []
        self.uploads: list[str] = []
        self.requests: list[str] = []
        self.drop_uploads: float = 0
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()

    def create(self, name: str, private: bool = False) -> Repository:
        """A new repository with the one file that the Hub puts into it."""
        repository = self.repositories[name] = Repository(private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        repository.commit({".gitattributes": Blob(attributes.encode(), False)}, "initial commit")
        return repository

    def may_write(self, account: str | None, name: str) -> bool:
        return account is not None and name.split("/")[0] in (account, *self.members.get(account, ()))


class _Reply(Exception):
    """Ends the handling of a request with an answer."""

    def __init__(self, status: int, body: dict | list | bytes | None = None, **headers: str):
        self.status, self.body = status, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        self.path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {self.path}")
        try:
            self._route()
            raise _Reply(404, {"error": f"no such route: {self.command} {self.path}"})
        except _Reply as reply:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            if "error" in (reply.body if isinstance(reply.body, dict) else {}):
                reply.headers.setdefault("X-Error-Message", reply.body["error"])
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except _Dropped:
            self.close_connection = True

    def _route(self) -> None:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and self.command in method.split():
                body = self._body()
                with self.hub.lock:
                    answer(self, body, *map(unquote, match.groups()))

    def _body(self) -> bytes:
        drop = self.command == "PUT" and self.hub.drop_uploads > 0
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size // 2 if drop else size)
                if drop:
                    break
                self.rfile.readline()
            else:
                self.rfile.readline()
        else:
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size // 2 if drop else size)
        self.hub.received.append(body)
        if drop:
            self.hub.drop_uploads -= 1
            raise _Dropped
        return body

    # -- Who asks, and for what ------------------------------------------------------------------------------------------

    def _account(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in self.hub.tokens:
            raise _Reply(401, {"error": "Invalid username or password."})
        return self.hub.tokens[token]

    def _repository(self, name: str, write: bool = False) -> Repository:
        account = self._account()
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.hub.may_write(account, name)):
            # The Hub tells strangers nothing about what is private.
            raise _Reply(401 if account is None else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if write and not self.hub.may_write(account, name):
            raise _Reply(403, {"error": "You don't have the rights to write to this repository"})
        return repository

    def _commit_of(self, name: str, revision: str) -> tuple[str, dict[str, Blob]]:
        found = self._repository(name).at(revision)
        if found is None:
            raise _Reply(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return found

    # -- Routes ------------------------------------------------------------------------------------------------------------

    def whoami(self, body: bytes) -> None:
        account = self._account()
        if account is None:
            raise _Reply(401, {"error": "Invalid username or password."})
        organizations = [{"name": name, "type": "org"} for name in self.hub.members.get(account, ())]
        raise _Reply(200, {"type": "user", "name": account, "orgs": organizations, "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> None:
        account, wanted = self._account(), json.loads(body)
        if account is None:
            raise _Reply(401, {"error": "Invalid username or password."})
        name = f"{wanted.get('organization') or account}/{wanted['name']}"
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if not self.hub.may_write(account, name):
            raise _Reply(
                403, {"error": f'You don\'t have the rights to create a model under the namespace "{name.split("/")[0]}"'}
            )
        if name in self.hub.repositories:
            raise _Reply(409, {"error": "You already created this model repo", **answer})
        self.hub.create(name, private=wanted.get("visibility") == "private")
        raise _Reply(200, answer)

    def validate_yaml(self, body: bytes) -> None:
        errors = metadata_errors(json.loads(body)["content"])
        raise _Reply(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        files = self._repository(name, write=True).files
        answer = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > 5_000_000
            known = files.get(file["path"])
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            answer.append(entry | ({"oid": known.oid} if known else {}))
        raise _Reply(200, {"files": answer})

    def lfs_batch(self, body: bytes, name: str) -> None:
        self._repository(name, write=True)
        objects = []
        for item in json.loads(body)["objects"]:
            if item["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}
                verify = {"href": f"{self.hub.endpoint}/lfs-verify"}
                item["actions"] = {"upload": upload, "verify": verify}
            objects.append(item)
        raise _Reply(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Reply(400, {"error": "the content does not match its SHA-256"})
        self.hub.objects[oid] = body
        self.hub.uploads.append(oid)
        raise _Reply(200, b"", ETag=f'"{oid}"')

    def lfs_verify(self, body: bytes) -> None:
        item = json.loads(body)
        stored = self.hub.objects.get(item["oid"])
        raise _Reply(200 if stored is not None and len(stored) == item["size"] else 404, {})

    def lfs_download(self, body: bytes, oid: str) -> None:
        self._send_range(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        files, title = dict(repository.files), ""
        for line in body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Reply(400, {"error": f"LFS object {value['oid']} was not uploaded"})
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _Reply(404, {"error": "A file with this name doesn't exist"}, X_Error_Code="EntryNotFound")
            else:
                raise _Reply(400, {"error": f"unknown operation {key}"})
        sha = repository.commit(files, title)
        raise _Reply(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        sha, files = self._commit_of(name, revision or "main")
        card = files.get("README.md")
        data = yaml.safe_load(card.content.decode().split("---")[1]) if card else {}
        common = {"id": name, "modelId": name, "sha": sha, "private": self.hub.repositories[name].private}
        listed = {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
        raise _Reply(200, common | listed | {"cardData": data, "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        _, files = self._commit_of(name, revision)
        raise _Reply(200, [_entry(path, blob) for path, blob in sorted(files.items())])

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        _, files = self._commit_of(name, revision)
        raise _Reply(200, [_entry(path, files[path]) for path in json.loads(body)["paths"] if path in files])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        sha, files = self._commit_of(name, revision)
        common = {"X-Repo-Commit": sha}
        blob = files.get(path)
        if blob is None:
            raise _Reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        if blob.large:
            # On another host, as on the Hub: the client follows redirects within one at once.
            location = f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/lfs/{blob.oid}"
            linked = {"X-Linked-ETag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
            raise _Reply(302, b"", **common, **linked, Location=location)
        self._send_range(blob.content, common | {"ETag": f'"{blob.oid}"'})

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            raise _Reply(200, content, **headers)
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        raise _Reply(206, content[first : last + 1], **headers, Content_Range=f"bytes {first}-{last}/{len(content)}")


class _Dropped(Exception):
    """The connection was cut off on purpose."""


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("GET HEAD", rf"/api/models/{_NAME}", _Handler.info),
    ("GET HEAD", rf"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("POST", rf"/api/models/{_NAME}/paths-info/([^/]+)", _Handler.paths_info),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_upload),
    ("GET HEAD", r"/lfs/(\w+)", _Handler.lfs_download),
    ("POST", r"/lfs-verify", _Handler.lfs_verify),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def _entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.large:
        entry["oid"] = Blob(b"pointer to " + blob.oid.encode(), False).oid
        entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
    return entry


def metadata_errors(card: str) -> list[str]:
    """What the Hub would refuse in the YAML block of a model card (its documented rules for the keys used here)."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if not match:
        return ['"metadata" is missing']
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    errors = []

    def expect(right: bool, message: str) -> None:
        if not right:
            errors.append(message)

    for code in _as_list(data.get("language")):
        known = isinstance(code, str) and re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?|multilingual|code", code)
        expect(bool(known), f'"language" must be an ISO 639 code, got {code!r}')
    expect(data.get("license", "mit") in LICENSES, f'"license" must be one of the known ones, got {data.get("license")!r}')
    expect(data.get("pipeline_tag") in PIPELINE_TAGS | {None}, f'"pipeline_tag" is unknown: {data.get("pipeline_tag")!r}')
    for key in ("tags", "datasets", "metrics", "base_model"):
        for value in _as_list(data.get(key)):
            expect(isinstance(value, str), f'"{key}" must hold text, got {value!r}')
    for name in _as_list(data.get("datasets")):
        expect(bool(_DATASET.fullmatch(str(name))), f'"datasets" must hold ids of datasets, got {name!r}')
    for name in _as_list(data.get("base_model")):
        expect(bool(_REPOSITORY.fullmatch(str(name))), f'"base_model" must be the id of a model, got {name!r}')
    for model in data.get("model-index", []):
        expect(isinstance(model.get("name"), str), '"model-index[].name" is required')
        for result in model["results"]:
            for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                value = result.get(path[0], {}).get(path[1])
                expect(isinstance(value, str), f'"model-index[].results[].{".".join(path)}" is required')
            for metric in result["metrics"]:
                sound = isinstance(metric.get("type"), str) and isinstance(metric.get("value"), (int, float, str))
                expect(sound, f'"model-index[].results[].metrics[]" needs type and value, got {metric}')
    return errors


def _as_list(value) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


@contextlib.contextmanager
def hub_server(tokens: dict[str, str], members: dict[str, list[str]] | None = None):
    """A running `HubServer`."""
    with HubServer(tokens, members) as server:
        yield server
