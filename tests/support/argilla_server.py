"""A stand-in of the parts of Argilla's HTTP API that its SDK uses here: one workspace, datasets, records and responses."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit
from uuid import uuid4

KEY = "a-key"
TIMES = {"inserted_at": "2026-01-01T00:00:00", "updated_at": "2026-01-01T00:00:00"}
WORKSPACE = {"id": str(uuid4()), "name": "team", **TIMES}


class ArgillaServer(ThreadingHTTPServer):
    """What the stand-in holds."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.datasets: dict[str, dict] = {}
        self.parts: dict[tuple[str, str], list[dict]] = {}
        """Fields, questions and records by dataset and kind."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def records(self, name):
        (id,) = (id for id, dataset in self.datasets.items() if dataset["name"] == name)
        return self.parts[id, "records"]

    def respond(self, record, user, status="submitted", **values):
        record["responses"].append(
            {"values": {name: {"value": value} for name, value in values.items()}, "status": status, "user_id": user}
        )


class _Handler(BaseHTTPRequestHandler):
    server: ArgillaServer

    def log_message(self, *_):
        pass

    def reply(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("X-Argilla-Api-Key") != KEY:
            return self.reply({"detail": "no"}, 401)
        path = urlsplit(self.path).path.removeprefix("/api/v1")
        return self.answer(path, json.loads(body) if body else None)

    do_GET = do_POST = do_PUT = do_PATCH = handle_request

    def answer(self, path, sent):
        datasets, parts = self.server.datasets, self.server.parts
        if path == "/me":
            return self.reply({"id": str(uuid4()), "username": "me", "role": "owner", **TIMES})
        if path == "/me/workspaces":
            return self.reply({"items": [WORKSPACE]})
        if path.startswith("/workspaces/"):
            return self.reply(WORKSPACE)
        if path == "/me/datasets":
            return self.reply({"items": list(datasets.values())})
        if path == "/datasets":
            made = {**sent, "id": str(uuid4()), "status": "draft", "last_activity_at": TIMES["updated_at"], **TIMES}
            datasets[made["id"]] = made
            return self.reply(made, 201)
        found = re.fullmatch(r"/(?:me/)?datasets/([^/]+)(?:/(.+))?", path)
        if not found or found[1] not in datasets:
            return self.reply({"detail": "not found"}, 404)
        id, kind = found[1], found[2]
        if kind is None:
            datasets[id] |= {
                name: value for name, value in (sent or {}).items() if name in ("guidelines", "distribution")
            }
            return self.reply(datasets[id])
        if kind == "publish":
            datasets[id]["status"] = "ready"
            return self.reply(datasets[id])
        if kind == "records/bulk":
            added = [
                {**item, "id": str(uuid4()), "responses": [], "suggestions": [], **TIMES} for item in sent["items"]
            ]
            parts.setdefault((id, "records"), []).extend(added)
            return self.reply({"items": added, "updated_item_ids": []})
        held = parts.setdefault((id, kind), [])
        if sent is None:
            offset = int(
                dict(part.split("=") for part in urlsplit(self.path).query.split("&") if part).get("offset", 0)
            )
            return self.reply({"items": held[offset:]})
        held.append({**sent, "id": str(uuid4()), "dataset_id": id, **TIMES})
        return self.reply(held[-1], 201)
