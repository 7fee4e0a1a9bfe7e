import hashlib
import http.server
import threading

import pytest

from edgeailite.files.download import download_once

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def server():
    """A local web server with one file under any name; counts what is asked for."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(404 if "absent" in self.path else 200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *arguments):
            del arguments

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        httpd.requests = requests
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["net.pth", f"net-{DIGEST}.pth", f"net-{DIGEST}.pth.tar"])
def test_file_is_fetched_once(server, tmp_path, name):
    paths = [download_once(f"{server.url}/some/{name}?v=1", tmp_path) for _ in range(2)]
    assert paths == [tmp_path / name] * 2
    assert paths[0].read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_wrong_hash_raises_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match="damaged: its SHA-256 does not begin with 01234567"):
        download_once(f"{server.url}/net-01234567.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_of_the_cache_is_fetched_again(server, tmp_path):
    (tmp_path / f"net-{DIGEST}.pth").write_bytes(b"half")
    path = download_once(f"{server.url}/net-{DIGEST}.pth", tmp_path)
    assert path.read_bytes() == CONTENT


def test_absent_file_and_absent_server_raise(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"absent\.pth could not be .*give its path"):
        download_once(f"{server.url}/absent.pth", tmp_path)
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        download_once("http://127.0.0.1:9/net.pth", tmp_path)


def test_address_without_file_name_raises(tmp_path):
    with pytest.raises(ValueError, match="names no file"):
        download_once("https://example.org/", tmp_path)


def test_default_cache_is_that_of_torch_hub(server, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert download_once(f"{server.url}/net.pth") == tmp_path / "checkpoints" / "net.pth"
