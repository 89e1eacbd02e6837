"""The rows of the security table that touch the server: who is let in, and what is refused."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import MODEL, FakeEngine, RewardEngine, Running, serve

from llamafactory.api.server import open_socket
from llamafactory.api.settings import Settings, read_settings
from llamafactory.extras.env import Env, list_variables, read_env
from llamafactory.extras.errors import UserError


KEY = "s3cret-\u00e4"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}]}


def call(
    running: Running, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(str(running.host), int(running.port), timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {"content-type": "application/json"} if data is not None else {}
    connection.request(method, path, data, given | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    result = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return result


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> FakeEngine:
    return FakeEngine(tiny_tokenizer)


@pytest.fixture(scope="module")
def running(engine: FakeEngine) -> Iterator[Running]:
    with serve(engine, max_body=10_000) as server:
        yield server


@pytest.fixture(scope="module")
def locked(engine: FakeEngine) -> Iterator[Running]:
    with serve(engine, key=KEY, cors_origins=("https://chat.example.org",)) as server:
        yield server


def test_the_defaults_are_closed() -> None:
    settings = read_settings(read_env({}))

    assert settings.host == "127.0.0.1"
    assert settings.is_local
    assert settings.cors_origins == ()
    assert settings.key is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "server.example.org", "127.0.0.1.example.org", ""])  # noqa: S104
def test_another_address_needs_a_key(host: str) -> None:
    with pytest.raises(UserError, match="API_KEY is not set"):
        read_settings(Env(api_host=host))
    assert read_settings(Env(api_host=host, api_key=KEY)).key == KEY


def test_settings_that_make_no_sense_are_one_sentence() -> None:
    for env, sentence in (
        (Env(api_port=99999), "API_PORT is 99999"),
        (Env(api_max_body=0), "API_MAX_BODY is 0"),
        (Env(api_cors_origins="chat.example.org"), "API_CORS_ORIGINS has 'chat.example.org'"),
        (Env(root_path="llm"), "starts with a slash"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_settings(env)
    assert read_settings(Env(api_cors_origins="https://a.org/, http://b:80")).cors_origins == (
        "https://a.org",
        "http://b:80",
    )


def test_the_key_is_never_shown() -> None:
    assert KEY not in repr(Env(api_key=KEY))
    assert all(KEY not in str(row) for row in list_variables({"API_KEY": KEY}))


def test_an_address_in_use_is_told_before_anything_is_loaded(running: Running) -> None:
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {running.port}"):
        open_socket(Settings(port=int(running.port)))


def test_a_wrong_key_opens_nothing(locked: Running, engine: FakeEngine) -> None:
    asked = len(engine.asked)
    paths = ("/v1/models", "/metrics", "/openapi.json", "/docs", "/nothing")
    for path in paths:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY[:6]}"}):
            status, given, body = call(locked, "GET", path, **headers)
            assert status == 401, path
            assert given["www-authenticate"] == "Bearer"
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        locked.client(api_key="wrong").chat.completions.create(**CHAT)  # type: ignore[call-overload]
    assert len(engine.asked) == asked


def test_the_right_key_opens_and_health_needs_none(locked: Running) -> None:
    status, _, body = call(locked, "GET", "/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    bearer = f"Bearer {KEY}".encode().decode("latin-1")
    assert call(locked, "GET", "/v1/models", authorization=bearer)[0] == 200


def test_without_a_key_only_calls_by_this_machines_name_are_answered(running: Running) -> None:
    for host in ("evil.example.org", "evil.example.org:8000", "127.0.0.1.evil.org", "localhost.evil.org:80"):
        assert call(running, "GET", "/v1/models", host=host)[0] == 403
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
        assert call(running, "GET", "/v1/models", host=host)[0] == 200


def test_pages_of_other_origins_read_nothing_unless_configured(running: Running, locked: Running) -> None:
    for origin in ("https://chat.example.org", "https://evil.example.org", "null"):
        assert "access-control-allow-origin" not in call(running, "GET", "/health", origin=origin)[1]
    allowed = call(locked, "GET", "/health", origin="https://chat.example.org")[1]
    assert allowed["access-control-allow-origin"] == "https://chat.example.org"
    assert "access-control-allow-credentials" not in allowed
    assert "access-control-allow-origin" not in call(locked, "GET", "/health", origin="https://evil.example.org")[1]
    preflight = {"origin": "https://chat.example.org", "access_control_request_method": "POST"}
    assert call(locked, "OPTIONS", "/v1/chat/completions", **preflight)[0] == 200


def test_a_page_cannot_post_without_asking_first(running: Running, engine: FakeEngine) -> None:
    """A form or text/plain needs no preflight, so only JSON is read."""
    asked = len(engine.asked)
    body = json.dumps(CHAT).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert call(running, "POST", "/v1/chat/completions", body, content_type=kind)[0] == 415
    assert len(engine.asked) == asked


def test_a_large_body_is_refused(running: Running) -> None:
    big = {**CHAT, "user": "x" * 20_000}
    status, _, body = call(running, "POST", "/v1/chat/completions", big)
    assert status == 413
    assert "larger than 10000 bytes" in json.loads(body)["error"]["message"]

    connection = http.client.HTTPConnection(str(running.host), int(running.port), timeout=10)
    pieces = (b"x" * 1000 for _ in range(20))  # chunked: no length in front
    connection.request(
        "POST", "/v1/chat/completions", pieces, {"content-type": "application/json"}, encode_chunked=True
    )
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "gpt-3.5-turbo", "messages": ' + b"[" * 4000 + b"]" * 4000 + b"}",
        b'{"model": "gpt-3.5-turbo", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "gpt-3.5-turbo", "seed": 1' + b"0" * 5000 + b', "messages": []}',
    ],
    ids=["empty", "cut", "list", "null", "bytes", "surrogate", "deep", "nan", "huge number"],
)
def test_broken_bodies_are_a_400_with_a_sentence(running: Running, body: bytes) -> None:
    status, headers, answer = call(running, "POST", "/v1/chat/completions", body)

    assert status == 400
    assert headers["content-type"] == "application/json"
    assert json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("kind", ["image_url", "video_url", "input_audio", "audio_url", "file"])
@pytest.mark.parametrize("url", ["http://169.254.169.254/", "file:///etc/passwd", "ftp://a/b", "/etc/passwd"])
def test_media_are_refused_and_nothing_is_fetched(running: Running, engine: FakeEngine, kind: str, url: str) -> None:
    asked = len(engine.asked)
    part = {"type": kind, kind: {"url": url}}

    status, _, body = call(
        running, "POST", "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [part]}]}
    )

    assert status == 400
    message = json.loads(body)["error"]["message"]
    assert any(word in message for word in ("fetches nothing", "opens no local", "no reference", "missing", "unknown"))
    assert len(engine.asked) == asked


def test_adapters_are_names_from_a_list_never_paths(running: Running) -> None:
    for name in (f"{MODEL}:/etc", f"{MODEL}:../x", "/etc/passwd", f"{MODEL}:", ""):
        status, _, body = call(running, "POST", "/v1/chat/completions", {**CHAT, "model": name})
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


def test_no_tensors_or_code_over_http(running: Running) -> None:
    for field in ("prompt_embeds", "lora_path", "lora_request", "chat_template", "trust_remote_code"):
        status, _, body = call(running, "POST", "/v1/chat/completions", {**CHAT, field: "x"})
        assert status == 400
        assert f"Unrecognized request argument: {field}" in json.loads(body)["error"]["message"]


def test_a_bug_is_a_500_that_says_nothing_about_the_inside(running: Running, engine: FakeEngine) -> None:
    engine.error = RuntimeError("/home/secret/path")
    try:
        status, _, body = call(running, "POST", "/v1/chat/completions", CHAT)
    finally:
        engine.error = None

    assert status == 500
    assert b"secret" not in body
    assert json.loads(body)["error"]["type"] == "server_error"
    assert call(running, "POST", "/v1/chat/completions", CHAT)[0] == 200


def test_a_reward_model_scores_and_does_not_chat(tiny_tokenizer: Any, running: Running) -> None:
    with serve(RewardEngine(tiny_tokenizer)) as judge:
        status, _, body = call(judge, "POST", "/v1/score/evaluation", {"model": MODEL, "messages": ["a", "bcd"]})
        assert status == 200
        answer = json.loads(body)
        assert (answer["object"], answer["scores"]) == ("score.evaluation", [1.0, 3.0])
        assert answer["id"].startswith("scoreval-")
        assert call(judge, "POST", "/v1/chat/completions", CHAT)[0] == 405
        assert call(judge, "POST", "/v1/completions", {"model": MODEL, "prompt": "x"})[0] == 405
    assert call(running, "POST", "/v1/score/evaluation", {"model": MODEL, "messages": ["a"]})[0] == 405
