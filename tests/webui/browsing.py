"""What tests of the page share: a board in a process of its own, pictures, and waiting for a fresh page."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


SRC = Path(__file__).resolve().parents[2] / "src"
SHOTS = Path(__file__).resolve().parents[2] / "screenshots"
START_SECONDS = 120


@dataclass
class Board:
    """A running `llamafactory-cli webui`."""

    work: Path
    """The folder that it was started in; holds data/ with the small datasets, and saves/ once there are runs."""
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self, *flags: str) -> None:
        """Start the server and wait until it answers."""
        argv = [sys.executable, "-m", "llamafactory.cli", "webui", "--port", str(self.port), *flags]
        environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", **self.environment}
        with (self.work / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.work, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            text = (self.work / "server.txt").read_text(encoding="utf-8", errors="replace")[-3000:]
            assert self.process.poll() is None, f"the board has ended:\n{text}"
            assert time.monotonic() < deadline, f"the board does not answer:\n{text}"
            time.sleep(0.3)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=30)
            self.process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:  # noqa: S310  our own address
                return bool(answer.status == 200)
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_board(visitor: Any, board: Board, query: str = "") -> None:
    """Go to the board and wait until its form is there."""
    visitor.goto("about:blank")  # what the last page still waited for goes with it
    visitor.goto(board.url + query, wait_until="domcontentloaded")
    visitor.wait_for_selector("#top-lang", state="visible")


def take_shot(visitor: Any, name: str) -> None:
    """Keep a picture of the whole page, for a person to look at."""
    SHOTS.mkdir(exist_ok=True)
    visitor.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)
