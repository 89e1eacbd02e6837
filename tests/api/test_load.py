"""Many clients, slow clients, clients that leave, and a server that is told to stop."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from serving import MODEL, FakeEngine, Running, serve, wait_until


ASK: list[Any] = [{"role": "user", "content": "Hi."}]
ANSWER = "one two three four five six seven eight nine ten. " * 2


def ask(running: Running, **options: Any) -> Any:
    return running.client().chat.completions.create(model=MODEL, messages=ASK, **options)


def read(running: Running) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in ask(running, stream=True))


def half_open(running: Running, data: bytes) -> socket.socket:
    client = socket.create_connection((str(running.host), int(running.port)), timeout=10)
    client.sendall(data)
    return client


def can_send(client: socket.socket) -> bool:
    try:
        client.sendall(b"x: y\r\n")
    except ConnectionError:
        return False
    return True


def is_closed(client: socket.socket, seconds: float = 5) -> bool:
    client.settimeout(seconds)
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_32_streams_at_once_with_one_dropped_midway(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(tiny_tokenizer, ANSWER)
    engine.seconds = 0.02

    def drop(running: Running) -> None:
        stream = ask(running, stream=True)
        next(iter(stream))
        stream.close()

    with serve(engine) as running, ThreadPoolExecutor(33) as pool:
        texts = [pool.submit(read, running) for _ in range(31)]
        pool.submit(drop, running).result()
        assert [text.result() for text in texts] == [ANSWER] * 31
        wait_until(lambda: engine.num_running == 0)
    assert engine.num_cancelled == 1
    assert engine.is_closed


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_full_queue_is_a_429_at_once(tiny_tokenizer: Any, is_stream: bool) -> None:
    engine = FakeEngine(tiny_tokenizer, ANSWER)
    engine.seconds, engine.max_running = 0.05, 2
    with serve(engine) as running, ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(read, running) for _ in range(2)]
        wait_until(lambda: engine.num_running == 2)

        with pytest.raises(openai.RateLimitError) as caught:
            ask(running, stream=is_stream)

        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "1"
        assert [text.result() for text in busy] == [ANSWER] * 2


def test_a_client_that_leaves_before_its_whole_answer_stops_the_model(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(tiny_tokenizer, ANSWER)
    engine.seconds = 0.2
    with serve(engine) as running:
        with pytest.raises(openai.APITimeoutError):
            running.client(timeout=0.3).chat.completions.create(model=MODEL, messages=ASK)
        with pytest.raises(openai.APITimeoutError):
            running.client(timeout=0.3).completions.create(model=MODEL, prompt=["a", "b"])

        wait_until(lambda: engine.num_cancelled == 3 and engine.num_running == 0)


def test_an_error_behind_the_first_text_reaches_the_client(tiny_tokenizer: Any) -> None:
    from llamafactory.chat.requests import EngineStoppedError

    class Breaking(FakeEngine):
        async def stream_chat(self, request: Any) -> Any:
            async for chunk in super().stream_chat(request):
                yield chunk
                raise EngineStoppedError("The engine was closed.")

    with serve(Breaking(tiny_tokenizer, ANSWER)) as running:
        with pytest.raises(openai.APIError, match="The engine was closed"):
            read(running)
        with pytest.raises(openai.APIError, match="The engine was closed"):
            list(running.client().completions.create(model=MODEL, prompt="x", stream=True))


def test_a_stream_without_text_is_kept_open_by_comments(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(tiny_tokenizer, "one two")
    engine.seconds = 0.3
    with serve(engine, ping_seconds=0.05) as running:
        response = running.client().chat.completions.with_raw_response.create(model=MODEL, messages=ASK, stream=True)
        text = response.http_response.read().decode()

        assert text.count(": ping\n\n") >= 2
        assert text.endswith("data: [DONE]\n\n")
        assert read(running) == "one two"


def test_slow_heads_and_bodies_end_and_stop_nobody_else(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(tiny_tokenizer)
    with serve(engine, head_seconds=0.5, body_seconds=0.5) as running:
        post = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        clients = [half_open(running, b"POST /v1/ch") for _ in range(20)]
        clients += [half_open(running, b"") for _ in range(20)]
        clients += [half_open(running, post + b"content-length: 500\r\n\r\n{") for _ in range(20)]

        assert read(running) == "Hello there."
        assert all(is_closed(client) for client in clients)
        assert read(running) == "Hello there."


def test_a_head_that_comes_byte_by_byte_does_not_buy_time(tiny_tokenizer: Any) -> None:
    with serve(FakeEngine(tiny_tokenizer), head_seconds=0.5) as running:
        client = half_open(running, b"GET /health HTTP/1.1\r\n")
        start = time.monotonic()
        while time.monotonic() < start + 10 and can_send(client):
            time.sleep(0.05)
        assert time.monotonic() - start < 5


def test_silent_connections_make_room_for_others(tiny_tokenizer: Any) -> None:
    with serve(FakeEngine(tiny_tokenizer), max_connections=10, head_seconds=60) as running:
        clients = [half_open(running, b"GET ") for _ in range(10)]
        for _ in range(3):
            assert read(running) == "Hello there."
        assert is_closed(clients[0])


def test_a_client_that_does_not_read_is_dropped(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(tiny_tokenizer, "x" * 40_000_000)
    engine.size = 400_000
    with serve(engine, send_seconds=0.5) as running:
        body = b'{"model": "gpt-3.5-turbo", "stream": true, "messages": [{"role": "user", "content": "x"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client = half_open(running, head + b"content-length: %d\r\n\r\n" % len(body) + body)

        wait_until(lambda: engine.num_cancelled == 1)

        client.close()
        engine.answer = "Hello there."
        assert read(running) == "Hello there."


def test_a_server_that_is_told_to_stop_finishes_running_answers(tiny_tokenizer: Any) -> None:
    engine = FakeEngine(tiny_tokenizer, ANSWER)
    engine.seconds = 0.05
    with serve(engine) as running, ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(read, running) for _ in range(2)]
        whole = pool.submit(ask, running)
        wait_until(lambda: engine.num_running == 3)

        stopper = threading.Thread(target=running.stop)
        stopper.start()

        assert [stream.result() for stream in streams] == [ANSWER] * 2
        assert whole.result().choices[0].message.content == ANSWER
        stopper.join()
        with pytest.raises(openai.APIConnectionError):
            ask(running)
    assert engine.is_closed


def test_metrics_count_what_happened(tiny_tokenizer: Any) -> None:
    import urllib.request

    engine = FakeEngine(tiny_tokenizer)
    with serve(engine) as running:
        ask(running)
        read(running)
        with pytest.raises(openai.NotFoundError):
            running.client().models.retrieve("x")
        with urllib.request.urlopen(f"{running.url}/metrics") as response:  # noqa: S310
            text = response.read().decode()

    assert 'llamafactory_requests_total{path="/v1/chat/completions",status="200"} 2.0' in text
    assert 'llamafactory_requests_total{path="other",status="404"} 1.0' in text
    assert "llamafactory_first_token_seconds_count 1.0" in text
    assert "# TYPE llamafactory_running_answers gauge" in text
