"""A hub on this machine: the endpoints that huggingface_hub uses, and the faults of networks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = 'c0ffee' + '0' * 34


class Hub:
    """Repositories by hub id, each a mapping of file names to bytes.

    Attributes:
        commit: What 'main' stands for.
        cut: Sizes after which the next transfers break, one each.
        corrupt: Transfers send wrong bytes of the right number.
        stall: When set, transfers stop half way until ``release`` is set.
        ignore_range: Transfers begin at the start, whatever was asked for.
        transfers: (file name, first byte) of each transfer.
        requests: Paths of all requests.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commit = COMMIT
        self.cut: list[int] = []
        self.corrupt = False
        self.ignore_range = False
        self.stall = False
        self.half = threading.Event()
        self.release = threading.Event()
        self.transfers: list[tuple[str, int]] = []
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f'http://127.0.0.1:{self.port}'
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that uses this hub and a cache below ``home``."""
        left_out = ('HF_HUB_CACHE', 'MMVIDEO_HASHES', 'HF_TOKEN')
        inherited = {k: v for k, v in os.environ.items() if k not in left_out}
        return {
            **inherited,
            'HF_ENDPOINT': self.endpoint,
            'HF_HOME': str(home),
            'HF_HUB_OFFLINE': '0',
            'PYTHONPATH': os.pathsep.join(p for p in sys.path if p),
        }

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.split('?')[0]
                hub.requests.append(f'{self.command} {path}')
                if found := re.fullmatch(r'/api/models/([^/]+/[^/]+)(/revision/.*)?', path):
                    return self.listing(found[1])
                if found := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
                    return self.resolve(*found.groups())
                if found := re.fullmatch(r'/cdn/([^/]+/[^/]+)/(.+)', path):
                    return self.transfer(found[2], hub.repositories[found[1]][found[2]])
                self.missing('EntryNotFound')

            def listing(self, repo: str) -> None:
                if repo not in hub.repositories:
                    return self.missing('RepoNotFound')
                files = hub.repositories[repo].items()
                siblings = [{'rfilename': name, 'size': len(data)} for name, data in files]
                body = {'id': repo, 'modelId': repo, 'sha': hub.commit, 'siblings': siblings}
                self.whole(json.dumps(body).encode(), {'Content-Type': 'application/json'})

            def resolve(self, repo: str, revision: str, name: str) -> None:
                if repo not in hub.repositories:
                    return self.missing('RepoNotFound')
                if revision not in ('main', hub.commit):
                    return self.missing('RevisionNotFound')
                if name not in hub.repositories[repo]:
                    return self.missing('EntryNotFound')
                data = hub.repositories[repo][name]
                headers = {'X-Repo-Commit': hub.commit}
                if name.endswith(('.json', '.txt')):
                    blob = b'blob %d\0' % len(data) + data
                    headers['ETag'] = f'"{hashlib.sha1(blob).hexdigest()}"'
                    return self.whole(data, headers)
                # Another host, as the real one: it does not get the hub's headers.
                headers['Location'] = f'http://localhost:{hub.port}/cdn/{repo}/{name}'
                headers['X-Linked-Etag'] = f'"{hashlib.sha256(data).hexdigest()}"'
                headers['X-Linked-Size'] = str(len(data))
                self.answer(302, {**headers, 'Content-Length': '0'})

            def transfer(self, name: str, data: bytes) -> None:
                asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
                first = int(asked[1]) if asked and not hub.ignore_range else 0
                headers = {'Content-Length': str(len(data) - first), 'ETag': '"cdn"'}
                if first:
                    headers['Content-Range'] = f'bytes {first}-{len(data) - 1}/{len(data)}'
                self.answer(206 if first else 200, headers)
                if self.command == 'HEAD':
                    return
                hub.transfers.append((name, first))
                if hub.corrupt:
                    data = bytes(byte ^ 1 for byte in data)
                self.send(data[first:], hub.cut.pop(0) if hub.cut else None)

            def send(self, data: bytes, cut: int | None) -> None:
                if hub.stall:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    hub.half.set()
                    hub.release.wait(60)
                    data = data[len(data) // 2 :]
                try:
                    self.wfile.write(data[:cut])
                except (BrokenPipeError, ConnectionResetError):
                    cut = 0
                if cut is not None:
                    self.close_connection = True

            def whole(self, body: bytes, headers: dict[str, str]) -> None:
                self.answer(200, {**headers, 'Content-Length': str(len(body))})
                if self.command == 'GET':
                    self.wfile.write(body)

            def missing(self, code: str) -> None:
                headers = {'X-Error-Code': code, 'X-Error-Message': code, 'Content-Length': '0'}
                if code == 'EntryNotFound':
                    headers['X-Repo-Commit'] = hub.commit
                self.answer(404, headers)

            def answer(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()

        return Handler


@pytest.fixture
def bare_hub() -> Iterator[Hub]:
    """A hub that only processes use, by ``hub.environment``."""
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def hub(bare_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that this process uses, with an empty cache at ``tmp_path / 'home' / 'hub'``."""
    from huggingface_hub import constants

    monkeypatch.delenv('MMVIDEO_HASHES', raising=False)
    template = bare_hub.endpoint + '/{repo_id}/resolve/{revision}/{filename}'
    for name, value in {
        'HF_HUB_OFFLINE': False,
        'ENDPOINT': bare_hub.endpoint,
        'HUGGINGFACE_CO_URL_TEMPLATE': template,
        'HF_HUB_CACHE': str(tmp_path / 'home' / 'hub'),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.chdir(tmp_path)
    return bare_hub
