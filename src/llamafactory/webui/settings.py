"""How the board listens and whom it lets in, read before anything heavy is imported."""

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from ..extras.env import Env
from ..extras.errors import UserError


MAX_PORT = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Address, password and whether a public link is asked for."""

    host: str
    port: int | None
    """None takes the first free port from 7860."""
    auth: tuple[str, str] | None
    share: bool
    root_path: str
    opens_browser: bool


def read_settings(args: Sequence[str], env: Env, command: str) -> Settings:
    """Merge flags and environment; an address that others can reach is refused without a password."""
    return _settle(_parser(command).parse_args(list(args)), env)


def read_chat_settings(args: Sequence[str], env: Env) -> tuple[Settings, list[str]]:
    """Do the same for `webchat`; return, too, the words that are left, which say which model is loaded."""
    flags, rest = _parser("webchat", "[run.yaml] [key=value ...]").parse_known_args(list(args))
    return _settle(flags, env), rest


def _settle(flags: argparse.Namespace, env: Env) -> Settings:
    host = flags.host or env.gradio_server_name
    port = flags.port if flags.port is not None else env.gradio_server_port
    auth = _read_auth(flags.auth or env.gradio_auth)
    share = flags.share or env.gradio_share
    if auth is None and not is_loopback(host):
        raise UserError(
            f"The board would listen on {host!r}, which other machines can reach, without a password; give one with "
            "--auth user:password or GRADIO_AUTH, or listen on 127.0.0.1."
        )
    if auth is None and share:
        raise UserError("A public link needs a password; give one with --auth user:password or GRADIO_AUTH.")
    if port is not None and not 0 < port <= MAX_PORT:
        raise UserError(f"The port is {port}; it is a number from 1 to {MAX_PORT}.")
    return Settings(
        host=host, port=port, auth=auth, share=share, root_path=env.gradio_root_path, opens_browser=flags.open
    )


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine and nothing else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _read_auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, separator, password = text.partition(":")
    if not (separator and user and password):
        raise UserError("The password of the board is given as user:password; one of the two parts is empty.")
    return user, password


def _parser(command: str, words: str = "") -> argparse.ArgumentParser:
    served = f"a chat with a model ({words})" if words else "the board"
    parser = argparse.ArgumentParser(
        prog=f"llamafactory-cli {command}",
        usage=f"llamafactory-cli {command} {words} [options]" if words else None,
        description=f"Serve {served} to a browser on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", help="address to listen on (GRADIO_SERVER_NAME); default 127.0.0.1")
    parser.add_argument("--port", type=int, help="port (GRADIO_SERVER_PORT); default: the first free one from 7860")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="who may enter (GRADIO_AUTH)")
    parser.add_argument("--share", action="store_true", help="ask gradio for a public link; needs a password")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser
