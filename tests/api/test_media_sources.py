"""Where media may come from: the rows of the security table about images, sound and video in requests."""

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from llamafactory.api import media_sources
from llamafactory.api.media_sources import MediaPolicy, is_public, read_reference
from llamafactory.api.settings import read_settings
from llamafactory.extras.env import read_env
from llamafactory.extras.errors import UserError


PUBLIC = "93.184.216.34"
REMOTE = MediaPolicy(allows_remote=True, max_bytes=1000, seconds=1.0)


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def answers(*addresses: str) -> Callable[..., Any]:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return getaddrinfo


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that stands for a public address; notes what was connected to and what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked.append((self.path, self.headers["host"]))  # type: ignore[attr-defined]
            status, headers, body = self.server.answer  # type: ignore[attr-defined]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in body:
                self.wfile.write(piece)
                self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            return

    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.connected, server.lookups = [], [], []
    server.answer = (200, {"content-type": "image/png"}, [b"pixels"])
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def connect_here(target: Any, timeout: float) -> Any:
        server.connected.append(target)
        plain = socket.socket()
        plain.settimeout(timeout)
        plain.connect(("127.0.0.1", server.server_port))
        return plain

    def look_up(host: str, port: int, **_: Any) -> Any:
        server.lookups.append(host)
        address = PUBLIC if len(server.lookups) == 1 else "127.0.0.1"  # a name that changes its mind
        return answers(address)(host, port)

    monkeypatch.setattr(media_sources.socket, "create_connection", connect_here)
    monkeypatch.setattr(media_sources.socket, "getaddrinfo", look_up)
    yield server
    server.shutdown()
    server.server_close()


def test_by_default_only_data_urls_are_read(no_network: None) -> None:
    policy = read_settings(read_env({})).media

    assert (policy.folder, policy.allows_remote) == (None, False)
    assert read_reference(data_url(b"abc"), "image", policy) == b"abc"
    for url, sentence in (
        ("https://example.org/x.png", "fetches nothing from the network"),
        ("http://127.0.0.1/", "fetches nothing from the network"),
        ("file:///etc/passwd", "opens no local files"),
        ("/etc/passwd", "opens no local files"),
        ("../x.png", "opens no local files"),
        ("ftp://example.org/x", "is no reference"),
        ("gopher://127.0.0.1:6379/_x", "is no reference"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_reference(url, "image", policy)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("data:image/png,abc", "not of the form"),
        ("data:image/png;base64", "not of the form"),
        (data_url(b"x", "text/html"), "not a type of image"),
        (data_url(b"x", "image/svg+xml"), "not a type of image"),
        (data_url(b"x", "audio/wav"), "not a type of image"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,AAA", "not valid base64"),
        (data_url(b"x" * 1001), "larger than 1000 bytes"),
    ],
)
def test_data_urls_that_are_not_right(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_reference(url, "image", REMOTE)


def test_local_files_only_below_the_open_folder_by_their_real_path(tmp_path: Path) -> None:
    folder, evil, outside = tmp_path / "media", tmp_path / "media_evil", tmp_path / "secret.png"
    for place in (folder / "sub", evil):
        place.mkdir(parents=True)
        (place / "x.png").write_bytes(b"fine")
    outside.write_bytes(b"secret")
    (folder / "link.png").symlink_to(outside)
    (folder / "way_out").symlink_to(tmp_path)
    (folder / "inner.png").symlink_to(folder / "sub" / "x.png")
    policy = MediaPolicy(folder=folder, max_bytes=100)

    for name in (
        "sub/x.png",
        str(folder / "sub/x.png"),
        f"file://{folder}/sub/x.png",
        "inner.png",
        "sub/../sub/x.png",
    ):
        assert read_reference(name, "image", policy) == b"fine"
    for name in (
        str(evil / "x.png"),
        str(outside),
        "../media_evil/x.png",
        "../secret.png",
        "link.png",
        "way_out/secret.png",
        f"file://{folder}/../secret.png",
        f"file://{folder}/%2e%2e/secret.png",
        "sub",
        "nothing.png",
        "x\0.png",
        "/dev/zero",
    ):
        with pytest.raises(UserError, match="is not a file in the folder"):
            read_reference(name, "image", policy)
    with pytest.raises(UserError, match="file of this machine"):
        read_reference("file://example.org/x.png", "image", policy)
    (folder / "big.png").write_bytes(b"x" * 101)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        read_reference("big.png", "image", policy)


def test_the_folder_is_opened_by_the_environment(tmp_path: Path) -> None:
    assert read_settings(read_env({"SAFE_MEDIA_PATH": str(tmp_path)})).media.folder == tmp_path
    closed = read_env({"SAFE_MEDIA_PATH": str(tmp_path), "ALLOW_LOCAL_FILES": "0"})
    assert read_settings(closed).media.folder is None
    with pytest.raises(UserError, match="SAFE_MEDIA_PATH is '/nowhere'"):
        read_settings(read_env({"SAFE_MEDIA_PATH": "/nowhere"}))
    assert read_settings(read_env({"ALLOW_REMOTE_MEDIA": "1"})).media.allows_remote


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",  # noqa: S104
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[fe80::1]",
        "[fc00::1]",
        "[ff02::1]",
        "[::]",
    ],
)
def test_addresses_that_are_not_public_are_not_connected_to(no_network: None, host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(UserError, match=r"is not a public address|cannot be found"):
            read_reference(f"{scheme}://{host}/x.png", "image", REMOTE)


def test_public_addresses_are_public() -> None:
    assert is_public(PUBLIC)
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")
    assert not is_public("nonsense")


@pytest.mark.parametrize("addresses", [(PUBLIC, "127.0.0.1"), ("127.0.0.1", PUBLIC), ("169.254.169.254",), ()])
def test_a_name_with_a_private_address_among_its_answers_is_refused(
    no_network: None, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(media_sources.socket, "getaddrinfo", answers(*addresses))

    with pytest.raises(UserError, match="is not a public address"):
        read_reference("https://two.example.org/x.png", "image", REMOTE)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org\\@127.0.0.1/x.png",
        "https://example.org\\.evil.org/",
        "http:\\\\127.0.0.1/x",
        "https://user@example.org/x",
        "https://example.org%00.evil.org/",
        "https://example.org:6379/x",
        "http://example.org:443/x",
        "https:///x.png",
        "https://exa mple.org/",
        "https://example.org/\r\nx: y",
        "https://[::1/x",
        "https://example.org:port/",
        "https://b\u00fccher.example/",
    ],
)
def test_addresses_that_two_parsers_could_read_differently_are_refused(no_network: None, url: str) -> None:
    with pytest.raises(UserError, match="The address"):
        read_reference(url, "image", REMOTE)


def test_the_address_that_was_checked_is_the_one_that_is_used(remote: Any) -> None:
    """A name whose second answer is 127.0.0.1 gains nothing: there is no second question."""
    assert read_reference("http://media.example.org/a%20b.png?c=d", "image", REMOTE) == b"pixels"

    assert remote.lookups == ["media.example.org"]
    assert remote.connected == [(PUBLIC, 80)]
    assert remote.asked == [("/a%20b.png?c=d", "media.example.org")]


def test_a_secure_connection_asks_for_the_hosts_own_certificate(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class Context:
        def wrap_socket(self, plain: Any, server_hostname: str) -> Any:
            names.append(server_hostname)
            return plain

    monkeypatch.setattr(ssl, "create_default_context", Context)
    assert read_reference("https://media.example.org/x.png", "image", REMOTE) == b"pixels"
    assert (names, remote.connected) == (["media.example.org"], [(PUBLIC, 443)])


def test_redirects_are_not_followed(remote: Any) -> None:
    for status in (301, 302, 303, 307, 308):
        remote.lookups.clear()
        remote.answer = (status, {"location": "http://127.0.0.1:9/", "content-type": "image/png"}, [])
        with pytest.raises(UserError, match=f"answered {status}, and redirects are not followed"):
            read_reference("http://media.example.org/x.png", "image", REMOTE)
    assert {target[0] for target in remote.connected} == {PUBLIC}


def test_size_type_and_time_are_bounded(remote: Any) -> None:
    def fetch(*answer: Any) -> None:
        remote.lookups.clear()
        remote.answer = answer
        read_reference("http://media.example.org/x.png", "image", REMOTE)

    kind = {"content-type": "image/png"}
    with pytest.raises(UserError, match="larger than 1000 bytes"):
        fetch(200, kind, [b"x" * 600] * 2)
    for name in ("text/html", "audio/wav", ""):
        with pytest.raises(UserError, match="not a type of image"):
            fetch(200, {"content-type": name}, [b"x"])
    with pytest.raises(UserError, match="answered 404"):
        fetch(404, kind, [])

    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.1)
            yield b"x"

    start = time.monotonic()
    with pytest.raises(UserError, match="could not be fetched"):
        fetch(200, {**kind, "content-length": "100"}, drip())
    assert time.monotonic() - start < 5
