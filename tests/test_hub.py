"""Weights from the hub: the hub's own client fetches them from a server of ours, once; without one, plain words."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small import BACKBONE

PATH = f"/timm/{BACKBONE}.r160_in1k/resolve/main/model.safetensors"


class Hub(ThreadingHTTPServer):
    """Serves one file as the hub does, and notes what was asked of it."""

    def __init__(self, data: bytes) -> None:
        asked = self.asked = list[tuple[str, str]]()

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                asked.append((self.command, self.path))
                found = self.path == PATH
                self.send_response(200 if found else 404)
                if found:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("X-Repo-Commit", "0" * 40)
                else:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", str(len(data) if found else 0))
                self.end_headers()
                if found and self.command == "GET":
                    self.wfile.write(data)

            do_GET = do_HEAD = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def hub(tiny_weights: Path) -> Iterator[Hub]:
    server = Hub(tiny_weights.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def init(folder: Path, store: str, port: int, backbone: str = BACKBONE) -> subprocess.CompletedProcess[str]:
    """Run `edge-cl init` in a process of its own, with the hub at a port of this machine."""
    home = str(folder / "cache")
    changed = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_HOME": home, "HF_HUB_CACHE": home}
    command = [sys.executable, "-m", "edge_cl.cli", "init", "--backbone", backbone, "--store", str(folder / store)]
    environment = {**os.environ, **changed, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [*command, "--image-size", "32", "--json"], env=environment, capture_output=True, text=True, timeout=120
    )


def test_weights_are_fetched_once(hub: Hub, tmp_path: Path, tiny_weights: Path) -> None:
    first = init(tmp_path, "first", hub.server_port)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["backbone"]["name"] == BACKBONE
    assert ("GET", PATH) in hub.asked
    assert not any(path.endswith(".bin") for _, path in hub.asked)  # never a pickled file
    wanted = hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    stored = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "first").rglob("*") if path.is_file()
    ]
    assert wanted in stored
    asked = len(hub.asked)
    second = init(tmp_path, "second", hub.server_port)
    assert second.returncode == 0, second.stderr
    assert len(hub.asked) == asked


def test_without_a_network_there_is_one_plain_error_and_no_second_try(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    run = init(tmp_path, "store", port)
    assert run.returncode == 1
    fault, mend = run.stderr.splitlines()
    assert fault.startswith(f"error: The weights of {BACKBONE} could not be fetched from the hub: ")
    assert mend == (
        "Pass a local file with --weights FILE.safetensors, or leave out --backbone to use edge_vit_tiny, "
        "which ships with edge-cl."
    )
    assert json.loads(run.stdout) == {"error": fault.removeprefix("error: "), "mend": mend}
    assert not (tmp_path / "store").exists()


def test_weights_that_the_hub_lacks(hub: Hub, tmp_path: Path) -> None:
    run = init(tmp_path, "store", hub.server_port, "vit_tiny_patch16_224")
    assert run.returncode == 1
    assert "could not be fetched from the hub: 404" in run.stderr
    assert "Traceback" not in run.stderr
