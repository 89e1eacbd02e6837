"""From a command's name to the function that does it, through torchrun where several devices take part.

Run as a module (`python -m llamafactory.launcher train ...`), this file is what torchrun starts on every device.
"""

import logging
import socket
import sys
from collections.abc import Mapping, Sequence

from .extras.cores import THREADS, usable_cores
from .extras.env import OPTIM_TORCH_DEFAULTS, Env, read_env, set_defaults
from .extras.errors import UserError
from .extras.logging import get_logger, setup_logging
from .extras.registry import did_you_mean, load_attribute
from .extras.version import VERSION


COMMANDS: Mapping[str, str] = {
    "train": "llamafactory.train.tuner:run_exp",
    "chat": "llamafactory.chat.chat_model:run_chat",
    "api": "llamafactory.api.server:run_api",
    "export": "llamafactory.train.tuner:export_model",
    "webui": "llamafactory.webui.interface:run_webui",
    "webchat": "llamafactory.webui.interface:run_webchat",
    "data": "llamafactory.data.inspection.command:run_data",
    "plan": "llamafactory.train.planning.command:run_plan_command",
    "bench": "llamafactory.bench.command:run_bench",
    "config": "llamafactory.hparams.commands:show_config",
    "schema": "llamafactory.hparams.commands:show_schema",
    "env": "llamafactory.extras.environment:show_environment",
    "version": "llamafactory.launcher:show_version",
    "help": "llamafactory.launcher:show_help",
}
CONFIGURED = ("train", "chat", "api", "export")  # commands that read a configuration, which is checked first
ALIASES: Mapping[str, str] = {"--help": "help", "-h": "help", "--version": "version", "-v": "version"}

USAGE = """\
usage: llamafactory-cli COMMAND [run.yaml] [key=value ...] [--key value ...]

  train      fine-tune a model
  chat       talk with a model in the terminal
  api        serve a model over HTTP, as OpenAI's clients expect it
  export     merge an adapter into its model and save it
  webui      do all of this in a browser
  webchat    talk with a model in a browser
  data       check, preview or count the data of a run
  plan       tell what a run will need: memory by part, time, whether it fits, and what to change
  bench      measure training, preprocessing and answering on this machine
  config     show the resolved configuration of a YAML file, and where each value comes from
  schema     print the JSON Schema of a configuration, for editors
  env        print what a bug report needs; with --vars, the environment variables
  version    print the version
  help       print this

`llamafactory-cli COMMAND --help` lists the keys of a command.
"""
SHUTDOWN_SECONDS = 600  # what workers get to save a checkpoint after Ctrl-C or SIGTERM


def launch(argv: Sequence[str] | None = None) -> None:
    """Run one command; argv is what follows the program's name."""
    words = list(sys.argv[1:] if argv is None else argv) or ["help"]
    name, args = ALIASES.get(words[0], words[0]), words[1:]
    if name not in COMMANDS:
        raise UserError(f"Unknown command {words[0]!r}.{did_you_mean(name, COMMANDS)}\n\n{USAGE.rstrip()}")
    if name in CONFIGURED:
        if _answer_about(name, args):
            return
        _prepare(name, args)
    load_attribute(COMMANDS[name])(args)


def torchrun_argv(args: Sequence[str], env: Env, *, num_devices: int, port: int) -> list[str]:
    """Return torchrun's arguments that run `train` with args on every device of this machine."""
    processes = str(env.nproc_per_node or max(num_devices, 1))
    address = env.master_addr or "127.0.0.1"
    if env.rdzv_id is not None:
        low, high = env.min_nnodes or env.nnodes, env.max_nnodes or env.nnodes
        options = [f"--nnodes={low}:{high}", f"--nproc-per-node={processes}", f"--max-restarts={env.max_restarts}"]
        options += [f"--rdzv-id={env.rdzv_id}", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}:{port}"]
    else:
        options = [f"--nnodes={env.nnodes}", f"--node-rank={env.node_rank}", f"--nproc-per-node={processes}"]
        options += [f"--master-addr={address}", f"--master-port={port}"]
    options.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")
    return [*options, "--module", "llamafactory.launcher", "train", *args]


def show_version(args: Sequence[str] = ()) -> None:
    """Print the version."""
    sys.stdout.write(f"llamafactory {VERSION}\n")


def show_help(args: Sequence[str] = ()) -> None:
    """Print the usage, or the help of the command that is named."""
    if args and args[0] in CONFIGURED:
        _answer_about(args[0], ["--help", *args[1:]])
    elif args and args[0] in ("data", "plan", "bench", "webui", "webchat"):
        load_attribute(COMMANDS[args[0]])(["--help"])
    else:
        sys.stdout.write(USAGE)


def _answer_about(name: str, args: Sequence[str]) -> bool:
    """Answer `--help [topic]` and `--print-config`; False when the command itself is wanted."""
    asked = next((word for word in args if word in ("--help", "-h")), None)
    if asked is not None:
        from .hparams.usage import format_help

        topic = next((word for word in args[args.index(asked) + 1 :]), None)
        sys.stdout.write(format_help(name, topic))
        return True
    if "--print-config" in args:
        from .hparams.commands import show_config

        show_config([name, *(word for word in args if word != "--print-config")])
        return True
    return False


def _prepare(name: str, args: Sequence[str]) -> None:
    """Check the configuration before anything heavy is imported; start workers where they are needed."""
    from .hparams import TrainingArguments
    from .hparams.parser import load_run_config

    config = load_run_config(args, name, announce=False)
    env = read_env()
    if env.optim_torch:
        set_defaults(OPTIM_TORCH_DEFAULTS)
    if name != "train":
        return
    set_defaults({"WANDB_PROJECT": env.wandb_project})
    if env.is_worker:
        return
    num_devices = 0 if config.get(TrainingArguments).use_cpu else _num_devices()
    if _needs_workers(env, num_devices):
        set_defaults({THREADS: str(max(usable_cores() // (env.nproc_per_node or max(num_devices, 1)), 1))})
        sys.exit(_run_workers(torchrun_argv(args, env, num_devices=num_devices, port=_port(env))))


def _num_devices() -> int:
    from .extras.device import num_devices

    return num_devices()


def _needs_workers(env: Env, num_devices: int) -> bool:
    processes = env.nproc_per_node or num_devices
    return env.force_torchrun or env.rdzv_id is not None or env.nnodes > 1 or processes > 1


def _port(env: Env) -> int:
    """Return MASTER_PORT, or a free port when all ranks are on this machine."""
    several = env.nnodes > 1 or (env.max_nnodes or 1) > 1
    if several and (env.master_addr is None or env.master_port is None):
        missing = "MASTER_ADDR" if env.master_addr is None else "MASTER_PORT"
        raise UserError(f"The run spans several machines but {missing} is not set; set it to the same on all of them.")
    if env.master_port is not None:
        return env.master_port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_workers(argv: list[str]) -> int:
    """Run torchrun in this process and return the exit code of the worker that failed first, or 0."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # said below, once
    try:
        torchrun.run(torchrun.parse_args(argv))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        if code != UserError.exit_code:
            get_logger(__name__).error("Rank %d ended with exit code %d; its messages are above.", rank, code)
        elif failure.error_file_data:
            sys.stderr.write(f"{_recorded_message(failure.error_file_data)}\n")
        return code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _recorded_message(data: Mapping[str, object]) -> str:
    """Take the sentence of a worker's UserError out of its error file."""
    inner = data.get("message")
    text = inner.get("message") if isinstance(inner, dict) else inner
    return str(text).partition(": ")[2] or str(text)


def _work() -> None:
    """Run as one of torchrun's processes; the parent prints a user's mistake once for all of them."""
    from torch.distributed.elastic.multiprocessing.errors import record

    setup_logging()
    try:
        record(launch)(sys.argv[1:])
    except UserError:
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _work()
