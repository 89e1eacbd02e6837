"""Where the images, sounds and videos of requests may come from: data URLs, and what the operator has opened.

An address is taken apart once, and what was checked is what is connected to: its name is resolved once, every answer
has to be a public address, and the connection goes to one of those, whatever the name says a moment later.
"""

import base64
import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from ..data.media.medium import MediaKind
from ..extras.errors import UserError


MIB = 2**20
TYPES: dict[MediaKind, tuple[str, ...]] = {
    "image": ("image/png", "image/jpeg", "image/jpg", "image/gif", "image/bmp", "image/webp"),
    "audio": ("audio/wav", "audio/x-wav", "audio/wave", "audio/mpeg", "audio/mp3", "audio/flac", "audio/ogg"),
    "video": ("video/mp4", "video/quicktime", "video/x-matroska", "video/webm", "video/x-msvideo"),
}
PORTS = {"http": 80, "https": 443}
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a translator turns into IPv4 ones, private ones too."""
CHUNK = 2**16
SHOWN = 60  # characters of a reference that a message repeats


@dataclass(frozen=True)
class MediaPolicy:
    """What is open."""

    folder: Path | None = None
    """Local files below it may be named; None: no local file."""
    allows_remote: bool = False
    """Whether media are fetched from public http and https addresses."""
    max_bytes: int = 16 * MIB
    seconds: float = 10.0
    """For all of a fetch."""


def read_reference(url: str, kind: MediaKind, policy: MediaPolicy) -> bytes:
    """Return the content that a reference in a request stands for; what is not open is a UserError."""
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme == "data":
        return read_data_url(url, kind, policy.max_bytes)
    if scheme in PORTS:
        if not policy.allows_remote:
            raise UserError(
                f"This server fetches nothing from the network; send the {kind} as a data URL (base64) instead."
            )
        return fetch(check_url(url), kind, policy)
    if scheme in ("", "file") or os.sep in scheme:
        return read_local(url, kind, policy)
    raise UserError(f"{shorten(url)} is no reference to a {kind}; send a data URL (base64).")


def read_data_url(url: str, kind: MediaKind, max_bytes: int) -> bytes:
    """Decode `data:TYPE;base64,DATA`."""
    head, comma, data = url.partition(",")
    words = [word.strip().lower() for word in head[len("data:") :].split(";")]
    if not comma or words[-1] != "base64":
        raise UserError(f"The data URL is not of the form data:TYPE;base64,DATA: {shorten(head)}.")
    check_type(words[0], kind)
    return decode_base64(data, max_bytes)


def decode_base64(data: str, max_bytes: int) -> bytes:
    """Decode base64 strictly."""
    if len(data) > max_bytes * 4 // 3 + 4:
        raise UserError(f"The data is larger than {max_bytes} bytes.")
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise UserError("The data is not valid base64.") from None
    if len(content) > max_bytes:
        raise UserError(f"The data is larger than {max_bytes} bytes.")
    return content


def check_type(name: str, kind: MediaKind) -> None:
    """Refuse a type that is not of the kind."""
    if name.partition(";")[0].strip().lower() not in TYPES[kind]:
        raise UserError(f"{shorten(name or 'no type')} is not a type of {kind}; use one of {', '.join(TYPES[kind])}.")


def read_local(url: str, kind: MediaKind, policy: MediaPolicy) -> bytes:
    """Read a file below the open folder; links are followed before, not after, it is decided where a file lies."""
    if policy.folder is None:
        raise UserError(f"This server opens no local files; send the {kind} as a data URL (base64) instead.")
    parts = urlsplit(url) if url.lower().startswith("file:") else None
    if parts is not None and parts.netloc not in ("", "localhost"):
        raise UserError("A file URL names a file of this machine: file:///path.")
    name = unquote(parts.path) if parts is not None else url
    refusal = UserError(f"{shorten(url)} is not a file in the folder that this server opens.")
    if "\0" in name:
        raise refusal
    root = policy.folder.resolve()
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise refusal
        with os.fdopen(
            os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb"
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise refusal
            content = file.read(policy.max_bytes + 1)
    except (OSError, RuntimeError):
        raise refusal from None
    if len(content) > policy.max_bytes:
        raise UserError(f"The file is larger than {policy.max_bytes} bytes.")
    return content


def check_url(url: str) -> SplitResult:
    """Take an address apart; one that two parsers could read differently is refused."""
    if not url.isascii() or any(letter <= " " or letter in "\\\x7f" for letter in url):
        raise UserError(f"The address {shorten(url)} has characters that an address cannot have; write them as %XX.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UserError(f"The address {shorten(url)} cannot be read.") from None
    if not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        raise UserError(f"The address {shorten(url)} has no plain host name.")
    if port not in (None, PORTS[parts.scheme]):
        raise UserError(f"The address {shorten(url)} names a port; only 80 for http and 443 for https are used.")
    return parts


def resolve(host: str, port: int) -> tuple[str, int]:
    """Return the address to connect to; one that is not public, among all that the name has, is refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"The host {shorten(host)} cannot be found.") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise UserError(f"The host {shorten(host)} is not a public address.")
    return addresses[0], port


def is_public(text: str) -> bool:
    """Tell whether an address is one of the open internet and nothing else, also where it wraps another one."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address.sixtofour is not None or address.teredo is not None or address in TRANSLATED:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def fetch(parts: SplitResult, kind: MediaKind, policy: MediaPolicy) -> bytes:
    """Get what an address has; no redirect is followed."""
    host = str(parts.hostname)
    target = resolve(host, PORTS[parts.scheme])
    end = time.monotonic() + policy.seconds
    try:
        with connect(target, host, parts.scheme == "https", policy.seconds) as connection:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"host": f"[{host}]" if ":" in host else host, "accept-encoding": "identity"}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                way = ", and redirects are not followed" if 300 <= response.status < 400 else ""
                raise UserError(f"The host {shorten(host)} answered {response.status}{way}.")
            check_type(response.getheader("content-type", ""), kind)
            body = read_body(response, policy.max_bytes)
            if response.length or time.monotonic() > end:  # a connection that is cut looks like the end of the body
                raise TimeoutError
            return body
    except (OSError, http.client.HTTPException):
        raise UserError(
            f"The {kind} could not be fetched from {shorten(host)} within {policy.seconds:g} seconds."
        ) from None


def read_body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Read a body up to the limit."""
    pieces: list[bytes] = []
    size = 0
    while piece := response.read(CHUNK):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise UserError(f"What the address has is larger than {max_bytes} bytes.")
    return b"".join(pieces)


@contextmanager
def connect(
    target: tuple[str, int], host: str, is_secure: bool, seconds: float
) -> Iterator[http.client.HTTPConnection]:
    """Connect to an address, asking for a host by its name; after the time the connection is cut, whatever it does."""
    plain = socket.create_connection(target, timeout=seconds)
    handle = plain.dup()  # TLS takes the other one over
    cut = threading.Timer(seconds, shut, (handle,))
    cut.daemon = True
    cut.start()
    connection = http.client.HTTPConnection(host, target[1], timeout=seconds)
    try:
        context = ssl.create_default_context() if is_secure else None
        connection.sock = context.wrap_socket(plain, server_hostname=host) if context else plain
        yield connection
    finally:
        cut.cancel()
        connection.close()
        handle.close()


def shut(handle: socket.socket) -> None:
    """End a connection from another thread."""
    try:
        handle.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is over already


def shorten(text: str) -> str:
    """Return the beginning of what a request has, as a message can show it."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
