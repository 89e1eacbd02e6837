"""The engines of vLLM and SGLang over fakes of the packages: what they are asked, and what becomes of it."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_packages
import pytest
from fake_packages import fake_packages as with_packages
from model_making import load, save_adapter

from llamafactory.chat import ChatModel
from llamafactory.chat.requests import EngineStoppedError, QueueFullError, UnknownAdapterError
from llamafactory.chat.vllm_engine import lora_room
from llamafactory.extras.errors import UserError
from llamafactory.extras.packages import is_available


QUESTION = [{"role": "user", "content": "Count to three. \u65e5\u672c \U0001f642"}]
GREEDY: dict[str, Any] = {"do_sample": False}
BACKENDS = ("vllm", "sglang")


@pytest.fixture(scope="module")
def arguments(tiny_llama_dir: Path) -> dict[str, Any]:
    return {"model_name_or_path": str(tiny_llama_dir), "infer_dtype": "float32", "max_new_tokens": 16}


@pytest.fixture(scope="module")
def adapter(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_llama_dir, tmp_path_factory.mktemp("outer") / "poet")


@pytest.fixture(scope="module")
def plain(arguments: dict[str, Any]) -> Iterator[ChatModel]:
    model = ChatModel(arguments)
    yield model
    model.close()


@pytest.fixture(scope="module", autouse=True)
def packages(tiny_llama_dir: Path, adapter: Path) -> Iterator[None]:
    adapted = load(tiny_llama_dir, adapter_name_or_path=(str(adapter),))
    with with_packages({"": load(tiny_llama_dir), str(adapter): adapted}):
        yield


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> Iterator[ChatModel]:
    config: dict[str, Any] = {"sglang_config": {"enable_deterministic_inference": True}}
    model = ChatModel({**arguments, "infer_backend": request.param, **(config if request.param == "sglang" else {})})
    yield model
    model.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def inside(model: ChatModel) -> Any:
    engine: Any = model.engine
    return engine.engine


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7, "repetition_penalty": 1.3},
        {"logit_bias": {300: 4.0}, "max_new_tokens": 5},
        {"stop_token_ids": list(range(100, 300))},
        {"ignore_eos": True},
        {"logit_bias": {2: 100.0}},
        {"logit_bias": {2: 100.0}, "ignore_eos": True},
    ],
    ids=str,
)
def test_a_likeliest_answer_is_that_of_the_default_engine(
    model: ChatModel, plain: ChatModel, options: dict[str, Any]
) -> None:
    (answer,) = model.chat(QUESTION, **GREEDY, **options)

    assert answer == plain.chat(QUESTION, **GREEDY, **options)[0]
    assert "".join(model.stream_chat(QUESTION, **GREEDY, **options)) == answer.response_text
    assert inside(model).asked[-1].params is not None


def test_log_probabilities_are_the_models_own(model: ChatModel, plain: ChatModel) -> None:
    for num_top in (0, 3):
        options = {**GREEDY, "logprobs": num_top, "presence_penalty": 1.0}
        tokens, expected = (some.chat(QUESTION, **options)[0].logprobs for some in (model, plain))

        assert [(token.token_id, token.raw) for token in tokens] == [(token.token_id, token.raw) for token in expected]
        for token, other in zip(tokens, expected, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [item.token_id for item in token.top] == [item.token_id for item in other.top]


def test_a_stop_text_ends_the_answer_and_the_work(model: ChatModel) -> None:
    whole = model.chat(QUESTION, **GREEDY)[0].response_text
    stop = whole[4:7]

    (answer,) = model.chat(QUESTION, stop=stop, **GREEDY)

    assert (answer.response_text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert "".join(model.stream_chat(QUESTION, stop=[stop], **GREEDY)) == answer.response_text
    wait_until(lambda: len(inside(model).aborted) == 2)


def test_each_of_several_answers_has_a_seed_of_its_own(model: ChatModel) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01}

    first, second = (model.chat(QUESTION, **options) for _ in range(2))

    assert first == second
    assert [answer.index for answer in first] == [0, 1, 2]
    assert len({answer.response_text for answer in first}) == 3
    assert model.chat(QUESTION, **{**options, "seed": 6}) != first
    params = inside(model).asked[0].params
    read = params.get if isinstance(params, dict) else lambda name: getattr(params, name)
    assert [read(name) for name in ("temperature", "top_p", "top_k", "min_p")] == [1.5, 0.9, 40, 0.01]


def test_a_reader_that_leaves_ends_the_work(model: ChatModel) -> None:
    async def read_one() -> None:
        stream = model.engine.stream_chat(model.chat_request(QUESTION, **GREEDY, max_new_tokens=200, n=2))
        await anext(stream)
        await stream.aclose()

    asyncio.run(read_one())

    wait_until(lambda: len(inside(model).aborted) == 2)
    stats = model.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_cancelled) == (0, 0, 2)
    assert model.chat(QUESTION, **GREEDY)[0].response_length == 16


def test_many_answers_at_once_are_what_they_are_alone(model: ChatModel, plain: ChatModel) -> None:
    async def ask() -> list[Any]:
        talks = [[{"role": "user", "content": f"Count to {number}."}] for number in range(8)]
        return await asyncio.gather(*(model.achat(talk, **GREEDY) for talk in talks))

    for number, (answer,) in enumerate(asyncio.run(ask())):
        assert answer == plain.chat([{"role": "user", "content": f"Count to {number}."}], **GREEDY)[0]


def test_a_full_queue_and_a_closed_engine(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENT", "1")
    monkeypatch.setenv("MAX_QUEUE", "1")
    model = ChatModel({**arguments, "infer_backend": "vllm"})

    with pytest.raises(QueueFullError, match="0 answers are open already, of at most 2"):
        model.chat(QUESTION, n=3)
    stream = model.stream_chat(QUESTION, max_new_tokens=400, ignore_eos=True)
    next(stream)
    model.close()

    with pytest.raises(EngineStoppedError, match="before the answer was finished"):
        list(stream)
    with pytest.raises(EngineStoppedError, match="load the model again"):
        model.chat(QUESTION)
    assert inside(model).is_down
    assert model.engine.stats().num_refused == 1


def test_a_json_schema_goes_to_the_engine(model: ChatModel) -> None:
    schema = {"type": "object"}

    model.chat(QUESTION, json_schema=schema, **GREEDY)

    params = inside(model).asked[-1].params
    given = params["json_schema"] if isinstance(params, dict) else params.structured_outputs.json
    assert json.loads(given) == schema
    with pytest.raises(UserError, match="makes its grammars itself"):
        model.chat(QUESTION, grammar=lambda: None)


def test_what_the_engine_refuses_is_one_sentence(arguments: dict[str, Any]) -> None:
    vllm = ChatModel({**arguments, "infer_backend": "vllm"})
    with pytest.raises(UserError, match="vLLM refuses the request: temperature must be in"):
        vllm.chat(QUESTION, temperature=3.0)
    for error, kind, sentence in (
        (fake_packages.VLLMValidationError("bad"), UserError, "vLLM refuses the request: bad"),
        (fake_packages.GracefulHTTPError("full"), QueueFullError, "vLLM has no room"),
        (fake_packages.VLLMServerError("dead"), EngineStoppedError, "vLLM cannot go on: dead"),
    ):
        inside(vllm).error = error
        with pytest.raises(kind, match=sentence):
            vllm.chat(QUESTION)
    vllm.close()

    sglang = ChatModel({**arguments, "infer_backend": "sglang"})
    for options, sentence in (
        ({"seed": 1}, "enable_deterministic_inference"),
        ({"repetition_penalty": 3.0}, "at most 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            sglang.chat(QUESTION, **options)
    for status, kind in ((400, UserError), (503, QueueFullError), (500, EngineStoppedError)):
        inside(sglang).finish = {"type": "abort", "message": "no", "status_code": status}
        with pytest.raises(kind, match="SGLang ended the answer: no"):
            sglang.chat(QUESTION)
    sglang.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_runs_own_adapter_answers_every_request(
    arguments: dict[str, Any], adapter: Path, plain: ChatModel, backend: str
) -> None:
    values = {**arguments, "infer_backend": backend, "adapter_name_or_path": str(adapter)}
    model = ChatModel(values)
    merged = ChatModel({**arguments, "adapter_name_or_path": str(adapter)})

    (answer,) = model.chat(QUESTION, **GREEDY)

    assert answer == merged.chat(QUESTION, **GREEDY)[0]
    assert answer != plain.chat(QUESTION, **GREEDY)[0]
    assert model.engine.adapter_names == ()
    model.close()
    merged.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_names_its_adapter(arguments: dict[str, Any], adapter: Path, plain: ChatModel, backend: str) -> None:
    model = ChatModel({**arguments, "infer_backend": backend, "infer_adapters": f"poet={adapter}"})

    answers = [model.chat(QUESTION, adapter=name, **GREEDY)[0] for name in (None, "poet")]

    assert model.engine.adapter_names == ("poet",)
    assert answers[0] == plain.chat(QUESTION, **GREEDY)[0] != answers[1]
    with pytest.raises(UnknownAdapterError, match="those that are: poet"):
        model.chat(QUESTION, adapter="adapter")
    options = inside(model).options
    if backend == "vllm":
        assert {name: options[name] for name in ("enable_lora", "max_loras", "max_lora_rank")} == {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": 32,
        }
    else:
        assert options["lora_paths"] == {"poet": str(adapter)}
        assert options["lora_backend"] == "triton"
    model.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_that_the_engine_cannot_read_is_refused(
    arguments: dict[str, Any], adapter: Path, backend: str, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, sentence in (
        ({"use_dora": True}, "it is DoRA"),
        ({"peft_type": "VERA"}, "it is of the kind VERA"),
        ({"modules_to_save": ["lm_head"]}, "whole weights"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        (tmp_path / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=f"{sentence}.*Merge it with `export`"):
            ChatModel({**arguments, "infer_backend": backend, "infer_adapters": f"a={tmp_path}"})


def test_room_for_ranks() -> None:
    assert [lora_room(wanted, 8) for wanted in (8, 9, 32, 300)] == [8, 16, 32, 320]
    with pytest.raises(UserError, match="has rank 64; set vllm_max_lora_rank"):
        lora_room(32, 64)
    with pytest.raises(UserError, match="vLLM goes up to 512"):
        lora_room(513, 8)


def test_settings_reach_the_packages(arguments: dict[str, Any]) -> None:
    values = {"vllm_maxlen": 128, "vllm_gpu_util": 0.5, "vllm_enforce_eager": True}
    config = {"max_num_seqs": 7, "gpu_memory_utilization": 0.25}
    model = ChatModel({**arguments, "infer_backend": "vllm", **values, "vllm_config": config})
    options = inside(model).options
    assert (options["max_model_len"], options["enforce_eager"], options["dtype"]) == (128, True, "float32")
    assert (options["max_num_seqs"], options["gpu_memory_utilization"]) == (7, 0.25)
    assert (options["tensor_parallel_size"], options["trust_remote_code"]) == (1, False)
    assert "enable_lora" not in options
    with pytest.raises(UserError, match="leaves no room within the model's limit of 128"):
        model.chat([{"role": "user", "content": "one " * 300}])
    model.close()

    values = {"sglang_maxlen": 128, "sglang_mem_fraction": 0.5, "sglang_tp_size": 2}
    model = ChatModel({**arguments, "infer_backend": "sglang", **values, "sglang_config": {"log_level": "info"}})
    options = inside(model).options
    assert (options["context_length"], options["mem_fraction_static"], options["tp_size"]) == (128, 0.5, 2)
    assert options["log_level"] == "info"
    model.close()


def test_settings_that_a_package_does_not_know_are_one_sentence(arguments: dict[str, Any]) -> None:
    for backend, config, sentence in (
        ("vllm", {"wizard": 1}, "vLLM does not start with these settings: .*wizard"),
        ("sglang", {"wizard": 1}, "SGLang does not start with these settings: .*wizard"),
        ("sglang", {"model_path": "x"}, "sglang_config sets model_path"),
    ):
        with pytest.raises(UserError, match=sentence):
            ChatModel({**arguments, "infer_backend": backend, f"{backend}_config": config})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_package_is_one_sentence(
    arguments: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, backend)
    is_available.cache_clear()
    with pytest.raises(UserError, match=rf'not installed: run `pip install "llamafactory\[{backend}\]"`'):
        ChatModel({**arguments, "infer_backend": backend})
    monkeypatch.undo()
    is_available.cache_clear()
