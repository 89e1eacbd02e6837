"""OpenAI's client gets the same from a server over vLLM or SGLang: the core cases of the suite, over fake packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_packages import fake_packages
from model_making import load
from openai import OpenAI
from serving import serve
from test_openai_client import (  # noqa: F401  (collected here again, with the fixtures below)
    test_a_stream_counts_its_tokens_on_request,
    test_an_answer_is_the_engines_answer,
    test_later_turns_see_earlier_ones,
    test_log_probabilities,
    test_models_are_listed,
    test_several_answers,
    test_stop_texts_end_the_answer,
    test_streamed_text_is_the_whole_text,
    test_temperature_zero_is_the_likeliest,
)

from llamafactory.chat import ChatModel


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def model(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> Iterator[ChatModel]:
    arguments = {"model_name_or_path": str(tiny_llama_dir), "infer_dtype": "float32", "max_new_tokens": 24}
    config = {"sglang_config": {"enable_deterministic_inference": True}} if request.param == "sglang" else {}
    with fake_packages({"": load(tiny_llama_dir)}):
        model = ChatModel({**arguments, **config, "do_sample": False, "infer_backend": request.param})
        yield model
        model.close()


@pytest.fixture(scope="module")
def client(model: ChatModel) -> Iterator[OpenAI]:
    with serve(model.engine) as running:
        yield running.client()
