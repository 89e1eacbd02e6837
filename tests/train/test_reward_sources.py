"""Where rewards come from: adapters on the policy's base, models of their own, servers, functions."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from model_making import FLOAT32, load, model_args, save_adapter, tuning
from rollout_runs import rollout_keys, run
from torch.testing import assert_close

from llamafactory.data.collator import PaddingCollator
from llamafactory.extras.errors import UserError
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.objective import Models
from llamafactory.train.rm.scoring import ScoredCollator
from llamafactory.train.rollouts.generation import Answer
from llamafactory.train.rollouts.rewards import (
    REWARD,
    ApiJudge,
    FunctionJudge,
    Judged,
    ModelJudge,
    Reward,
    function_reward,
    judge_all,
)
from llamafactory.train.rollouts.shared_base import plain_tensors, reward_on_shared_base


ANSWERS = [Answer([5, 6, 7], [8, 9, 2], True), Answer([10, 11], [12, 13, 14, 15, 16], False)]
JUDGED = Judged(ANSWERS, ["a", "b"], ["short", "much longer"], {"answer": ["x", "y"]})


@pytest.fixture(scope="module")
def reward_adapter(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as stage rm leaves it, with weights that look trained."""
    from model_making import randomize

    arguments = model_args(tiny_llama_dir)
    tokenizer = load_tokenizer(arguments)["tokenizer"]
    model = load_model(tokenizer, arguments, tuning(), True, dtype=FLOAT32, head="score")
    folder = tmp_path_factory.mktemp("reward") / "adapter"
    randomize(model, seed=3).save_pretrained(folder)
    return folder


def expected_scores(base: Path, adapter: Path) -> torch.Tensor:
    """Scores of plain peft, one answer at a time."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = PeftModel.from_pretrained(plain, str(adapter)).eval()
    rows = [torch.tensor([answer.prompt_ids + answer.ids]) for answer in ANSWERS]
    with torch.no_grad():
        return torch.stack([model(input_ids=row).logits[0, 0] for row in rows])


def test_a_reward_adapter_shares_the_base_with_the_policy_and_scores_like_plain_peft(
    tiny_llama_dir: Path, reward_adapter: Path, tiny_tokenizer: Any
):
    policy = load(tiny_llama_dir, tuning())
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    reward = reward_on_shared_base(policy, reward_adapter, model_args(tiny_llama_dir))
    assert reward is not None
    shared = {weight.data_ptr() for weight in plain_tensors(policy.get_base_model().model).values()}
    held = [weight for name, weight in reward.named_parameters() if "lora_" not in name and "score" not in name]
    assert held
    assert all(weight.data_ptr() in shared for weight in held)

    judge = ModelJudge(ScoredCollator(PaddingCollator(tiny_tokenizer)), 2)
    expected = expected_scores(tiny_llama_dir, reward_adapter)
    assert_close(torch.tensor(judge(Models(policy, {REWARD: reward}), JUDGED)), expected, rtol=1e-4, atol=1e-5)
    assert {name for name, weight in policy.named_parameters() if weight.requires_grad} == trained
    assert all(torch.equal(weight, before[name]) for name, weight in policy.named_parameters())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_ppo_learns_from_a_reward_model(
    tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, reward_adapter: Path, kind: str
):
    keys = rollout_keys(tiny_llama_dir, demo_dataset_dir, tmp_path, reward_funcs=None, finetuning_type="lora")
    changes: dict[str, Any] = {"reward_model": str(reward_adapter)}
    if kind == "full":
        changes = {"reward_model": str(tiny_llama_dir), "reward_model_adapters": str(reward_adapter)}
    _, log = run({**keys, **changes, "reward_model_type": kind, "ppo_epochs": 1, "max_steps": 2})
    assert all(entry["reward"] != 0 for entry in log)
    assert not list((tmp_path / "out").glob("*/adapter_config.json"))


def test_a_reward_model_without_a_score_is_refused(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path):
    keys = rollout_keys(tiny_llama_dir, demo_dataset_dir, tmp_path, reward_funcs=None, finetuning_type="lora")
    words = save_adapter(tiny_llama_dir, tmp_path / "words")
    with pytest.raises(UserError, match="holds no score layer and no value head file"):
        run({**keys, "reward_model": str(words)})
    with pytest.raises(UserError, match="has no score layer"):
        run({**keys, "reward_model": str(tiny_llama_dir), "reward_model_type": "full"})


class Server(BaseHTTPRequestHandler):
    """Scores a text by its length, or replies what it is told to."""

    replies: ClassVar[list[tuple[int, Any]]] = []
    seen: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        code, reply = self.replies.pop() if self.replies else (200, {"scores": [len(t) for t in body["messages"]]})
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/score"
    server.shutdown()
    thread.join()
    server.server_close()


def decode(rows: list[list[int]]) -> list[str]:
    return ["x" * len(row) for row in rows]


def test_a_server_is_asked_for_scores_and_its_failures_are_named(address: str):
    models = Models(torch.nn.Identity())
    assert ApiJudge(address, decode)(models, JUDGED) == [6.0, 7.0]
    assert Server.seen[-1] == {"model": "model", "messages": ["x" * 6, "x" * 7]}
    for reply, words in (
        ((500, {}), "refused the answers: 500"),
        ((200, {"scores": [1.0]}), "with 2 numbers"),
        ((200, {"scores": [1.0, "a"]}), "with 2 numbers"),
        ((200, [1, 2]), "with 2 numbers"),
    ):
        Server.replies.append(reply)
        with pytest.raises(UserError, match=words):
            ApiJudge(address, decode)(models, JUDGED)
    with pytest.raises(UserError, match="gave no usable reply"):
        ApiJudge("http://127.0.0.1:9/", decode, timeout=2.0)(models, JUDGED)


def test_a_run_learns_from_a_server(tiny_llama_dir: Path, demo_dataset_dir: Path, tmp_path: Path, address: str):
    keys = rollout_keys(tiny_llama_dir, demo_dataset_dir, tmp_path, reward_funcs=None, stage="grpo", num_generations=4)
    _, log = run({**keys, "reward_model": address, "reward_model_type": "api", "max_steps": 2})
    assert log[0]["reward"] > 10
    assert "<|im_start|>" in Server.seen[-1]["messages"][0]


def test_functions_get_what_they_name_and_may_not_apply():
    models = Models(torch.nn.Identity())
    rewards = [
        Reward("long", FunctionJudge("long", lambda completions: [len(text) for text in completions]), 2.0),
        Reward("known", FunctionJudge("known", lambda prompts, answer: [None, float(answer[1] == "y")]), 10.0),
        Reward("all", FunctionJudge("all", lambda **columns: [float(len(columns))] * 2)),
    ]
    total, parts = judge_all(rewards, models, JUDGED)
    assert total.tolist() == [5 * 2 + 3, 11 * 2 + 10 + 3]
    assert parts["known"].isnan().tolist() == [True, False]


def test_a_plug_in_names_a_reward():
    from llamafactory.train.plugins import REWARDS

    name = "test_reward_sources_long"
    if name not in REWARDS:
        REWARDS.register(name, lambda completions: [1.0 for _ in completions])
    assert function_reward(name, 0.5).judge(Models(torch.nn.Identity()), JUDGED) == [1.0, 1.0]
    with pytest.raises(UserError, match="Unknown reward"):
        function_reward("nobody_knows_this")
