"""The command itself, as a process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from llamafactory.extras.env import child_environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(model: Path, port: int, *words: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llamafactory.cli", "api", f"model_name_or_path={model}", *words]
    environment = child_environment(API_PORT=str(port), OMP_NUM_THREADS="1", **variables)
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_health(process: subprocess.Popen[str], port: int) -> None:
    for _ in range(1200):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_sigterm_finishes_running_answers(tiny_llama_dir: Path) -> None:
    port = free_port()
    process = start(tiny_llama_dir, port, "max_new_tokens=400", API_MODEL_NAME="tiny", API_KEY="k")
    try:
        wait_for_health(process, port)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0, timeout=60)
        ask: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Count."}]}
        options: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}
        expected = client.chat.completions.create(**ask, **options).choices[0].message.content
        stream = iter(client.chat.completions.create(**ask, **options, stream=True))
        wholes: list[Any] = []
        thread = threading.Thread(target=lambda: wholes.append(client.chat.completions.create(**ask, **options)))
        text = next(stream).choices[0].delta.content or ""
        thread.start()
        time.sleep(0.2)

        process.send_signal(signal.SIGTERM)

        chunks = list(stream)
        thread.join()
        assert text + "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "length"
        assert wholes[0].choices[0].message.content == expected
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_an_open_address_without_a_key_is_refused_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "nowhere", 0, API_HOST="0.0.0.0")  # noqa: S104
    try:
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 2
    assert "API_KEY is not set" in message
    assert os.linesep.join(message.splitlines()[:1]) == message.strip()  # one sentence, no traceback
