"""A stand-in for the Hugging Face hub on loopback: it makes repositories, takes commits, and gives files out."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote


class Hub(BaseHTTPRequestHandler):
    """Repositories by name, each a list of commits, each a dict of files; large files by their SHA-256."""

    def log_message(self, *_):
        """Print nothing."""

    def body(self):
        """What the client sent."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content, status=200, **headers):
        """Send bytes, or anything else as JSON."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, status, code):
        """An error as the hub sends it."""
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def commit_of(self, name, revision):
        """The number of a commit and its files."""
        commits = self.server.repositories.get(name, [])
        names = {"main": len(commits) - 1, **{sha(number): number for number in range(len(commits))}}
        number = names.get(unquote(revision), -1)
        return number, commits[number] if number >= 0 else None

    def do_HEAD(self):
        """A file's size and hash."""
        self.do_GET()

    def do_GET(self):
        """What a repository holds, or one of its files."""
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.path.partition("?")[0]):
            number, files = self.commit_of(found[1], found[2] or "main")
            if files is None:
                return self.refuse(404, "RepoNotFound")
            sizes = self.server.lies or {name: len(content) for name, content in files.items()}
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            return self.answer({"id": found[1], "sha": sha(number), "siblings": siblings})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path):
            number, files = self.commit_of(found[1], found[2])
            if files is None or found[3] not in files:
                return self.refuse(404, "EntryNotFound")
            content = files[found[3]]
            self.server.given.append(f"{self.command} {found[3]}")
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(content, ETag=etag, X_Repo_Commit=sha(number), Accept_Ranges="bytes")
        return self.refuse(404, "RepoNotFound")

    def do_PUT(self):
        """A large file."""
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self):
        """A new repository, the plan of an upload, a commit."""
        raw, server = self.body(), self.server
        if self.headers.get("Authorization") != "Bearer hf_standin":
            return self.refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in server.repositories
            server.repositories.setdefault(name, [])
            return self.answer({"url": f"{server.address}/{name}", "id": name}, 409 if there else 200)
        if self.path == "/api/validate-yaml":
            assert json.loads(raw)["content"].startswith("---\n")
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            upload = {"upload": {"href": f"{server.address}/large"}}
            objects = [{"oid": o["oid"], "size": o["size"], "actions": upload} for o in json.loads(raw)["objects"]]
            return self.answer({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main(?:\?.*)?", self.path)
        if found and found[2] == "preupload":
            modes = {True: "lfs", False: "regular"}
            files = [each["path"] for each in json.loads(raw)["files"]]
            plan = [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False} for p in files]
            return self.answer({"files": plan})
        if found:
            files = dict(server.repositories[found[1]][-1]) if server.repositories[found[1]] else {}
            for line in map(json.loads, raw.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = server.large[value["oid"]]
            server.repositories[found[1]].append(files)
            number = sha(len(server.repositories[found[1]]) - 1)
            return self.answer({"commitUrl": f"{server.address}/{found[1]}/commit/{number}", "commitOid": number})
        return self.refuse(404, "NotFound")


def sha(number):
    """The name of a commit, 40 hexadecimal digits."""
    return f"{number + 1:040x}"


@contextmanager
def hub():
    """A running server; `repositories`, `given` (files asked for) and `lies` (sizes it claims) may be looked at."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.large, server.given, server.lies = {}, {}, [], {}
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
