"""Commands, exit codes, torchrun's arguments, and that nothing heavy is imported before it is needed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamafactory import cli, launcher
from llamafactory.extras.env import Env, child_environment
from llamafactory.extras.errors import UserError


HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "numpy")


def run(*words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamafactory.cli", *words]
    environment = child_environment(OMP_NUM_THREADS="1", **variables)
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def imported_by(code: str, *words: str) -> set[str]:
    """Run code in a fresh interpreter and return which heavy modules it imported."""
    script = f"import sys\nsys.argv = ['llamafactory-cli', *sys.argv[1:]]\n{code}\n"
    script += f"print('IMPORTED', [name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return set(eval(result.stdout.split("IMPORTED")[-1]))  # noqa: S307 - our own output


@pytest.mark.parametrize(
    "words", [["version"], ["help"], ["train", "--help"], ["api", "--help"], ["schema"], ["env", "--vars"], []]
)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    code = "from llamafactory.cli import main\nmain(sys.argv[1:])"
    assert imported_by(code, *words) == set()


def test_a_bad_file_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("model_name_or_path: x\noutput_dir: y\nlora_rnak: 8\n")
    code = "from llamafactory.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass"
    assert imported_by(code, "train", str(file)) == set()


def test_importing_the_arguments_is_cheap() -> None:
    assert imported_by("import llamafactory.hparams, llamafactory.launcher") == set()


def test_version_and_help_answer(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["version"], ["--version"], ["-v"]):
        cli.main(words)
        assert capsys.readouterr().out.startswith("llamafactory ")
    for words in (["help"], ["--help"], ["-h"], []):
        cli.main(words)
        assert capsys.readouterr().out.startswith("usage: llamafactory-cli COMMAND")
    cli.main(["help", "train"])
    assert "usage: llamafactory-cli train" in capsys.readouterr().out
    cli.main(["chat", "--help", "generating"])
    assert "temperature" in capsys.readouterr().out


def test_every_command_is_in_the_usage() -> None:
    assert all(f"\n  {name} " in launcher.USAGE for name in launcher.COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown command 'trian'. Did you mean 'train'?"),
        (["train", "missing.yaml"], "There is no file 'missing.yaml'."),
        (["train", "--lora_rank", "x"], "lora_rank is 'x' but must be a whole number >= 1"),
        (["chat", "cutoff=5"], "unknown key cutoff: 5; did you mean cutoff_len"),
        (["export", "model_name_or_path=x"], "export_dir is missing"),
        (["env", "--foo"], "`env` does not know '--foo'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_print_config_shows_the_configuration_and_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", "model_name_or_path=x", "output_dir=y", "--print-config", "lora_rank=4"])
    assert "lora_rank: 4  # command line" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_interrupt_ends_quietly(tmp_path: Path) -> None:
    pipe = tmp_path / "run.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(pipe)]
    # Opening the pipe returns when the command has begun to read it.
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, pipe.open("w"):
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message == "Interrupted.\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m llamafactory.cli train --help all | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout


def test_a_token_in_an_error_is_hidden() -> None:
    result = run("train", "model_name_or_path=x", "output_dir=y", "lora_rank=hf_abcdefgh12345678")
    assert result.returncode == 2
    assert "hf_abcdefgh12345678" not in result.stderr
    assert "lora_rank" in result.stderr


def test_torchrun_gets_one_process_per_device() -> None:
    argv = launcher.torchrun_argv(["my run.yaml", "run_name=a b"], Env(), num_devices=4, port=1234)
    assert argv == [
        "--nnodes=1",
        "--node-rank=0",
        "--nproc-per-node=4",
        "--master-addr=127.0.0.1",
        "--master-port=1234",
        "--shutdown-timeout=600",
        "--module",
        "llamafactory.launcher",
        "train",
        "my run.yaml",
        "run_name=a b",
    ]


def test_torchrun_gets_the_geometry_of_the_environment() -> None:
    env = Env(nnodes=2, node_rank=1, nproc_per_node=8, master_addr="10.0.0.1", master_port=29500)
    argv = launcher.torchrun_argv([], env, num_devices=4, port=29500)
    assert argv[:5] == [
        "--nnodes=2",
        "--node-rank=1",
        "--nproc-per-node=8",
        "--master-addr=10.0.0.1",
        "--master-port=29500",
    ]


def test_an_elastic_run_meets_at_the_rendezvous() -> None:
    env = Env(rdzv_id="job", min_nnodes=1, max_nnodes=3, max_restarts=2, master_addr="10.0.0.1", master_port=29500)
    argv = launcher.torchrun_argv(["run.yaml"], env, num_devices=2, port=29500)
    assert argv[:6] == [
        "--nnodes=1:3",
        "--nproc-per-node=2",
        "--max-restarts=2",
        "--rdzv-id=job",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.0.0.1:29500",
    ]


def test_torchrun_understands_the_arguments() -> None:
    from torch.distributed.run import parse_args

    env = Env(rdzv_id="job", min_nnodes=1, max_nnodes=3)
    for variables in (Env(), env):
        parsed = parse_args(launcher.torchrun_argv(["my run.yaml", "--flag", "x"], variables, num_devices=2, port=1))
        assert (parsed.training_script, parsed.module) == ("llamafactory.launcher", True)
        assert parsed.training_script_args == ["train", "my run.yaml", "--flag", "x"]


@pytest.mark.parametrize(
    ("env", "num_devices", "needs"),
    [
        (Env(), 0, False),
        (Env(), 1, False),
        (Env(), 2, True),
        (Env(force_torchrun=True), 0, True),
        (Env(nproc_per_node=2), 0, True),
        (Env(nproc_per_node=1), 8, False),
        (Env(nnodes=2), 1, True),
        (Env(rdzv_id="job"), 1, True),
    ],
)
def test_workers_start_where_several_devices_take_part(env: Env, num_devices: int, needs: bool) -> None:
    assert launcher._needs_workers(env, num_devices) is needs


def test_several_machines_need_a_meeting_point() -> None:
    assert launcher._port(Env(nnodes=2, master_addr="a", master_port=5)) == 5
    assert 0 < launcher._port(Env()) < 65536
    with pytest.raises(UserError, match="spans several machines but MASTER_ADDR is not set"):
        launcher._port(Env(nnodes=2, master_port=5))
    with pytest.raises(UserError, match="spans several machines but MASTER_PORT is not set"):
        launcher._port(Env(nnodes=2, master_addr="a"))


@pytest.mark.slow
def test_a_mistake_that_the_workers_find_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    lines = ("model_name_or_path: ./no model", "output_dir: out dir", "do_train: true", "dataset: x", "use_cpu: true")
    (folder / "my run.yaml").write_text("\n".join(lines))
    result = run("train", "my run.yaml", cwd=folder, NPROC_PER_NODE="2")
    assert result.returncode == 2
    assert result.stderr.count("./no model") == 1
    assert "Traceback" not in result.stderr
