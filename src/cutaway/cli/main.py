"""The `cutaway` command: finds the module of a subcommand, and turns a user's mistake into one line and exit code 2.

Nothing heavy is imported here, so that `cutaway --help` answers at once.
"""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from cutaway import __version__
from cutaway.errors import Stopped, UserError

COMMANDS = {
    "quickstart": ("cutaway.cli.quickstart", "the whole life of a small model on this machine, then talk to it"),
    "build": ("cutaway.cli.build", "the same on real text: fetch, train every stage, report, export"),
    "playground": ("cutaway.cli.playground", "write the built-in data sets of a made-up town"),
    "tokenizer": ("cutaway.cli.tokenizer", "train a byte-level BPE vocabulary on your text"),
    "pretrain": ("cutaway.cli.pretrain", "next-token training on plain text"),
    "sft": ("cutaway.cli.sft", "fine-tuning on conversations"),
    "lora": ("cutaway.cli.lora", "train a small adapter on conversations"),
    "dpo": ("cutaway.cli.dpo", "learn from pairs of answers, one preferred to the other"),
    "reward": ("cutaway.cli.reward", "train a model that scores answers, on pairs"),
    "distill": ("cutaway.cli.distill", "train a student on a teacher's distributions"),
    "ppo": ("cutaway.cli.ppo", "reinforcement learning with a value model"),
    "grpo": ("cutaway.cli.grpo", "reinforcement learning from groups of answers: GRPO and its relatives"),
    "spo": ("cutaway.cli.spo", "reinforcement learning from single answers, against what their prompt earned before"),
    "agent": ("cutaway.cli.agent", "reinforcement learning over several turns with tools"),
    "merge": ("cutaway.cli.merge", "make an adapter and its base one model"),
    "chat": ("cutaway.cli.chat", "talk to a model in the terminal"),
    "serve": ("cutaway.cli.serve", "an OpenAI-compatible server and a chat page"),
    "eval": ("cutaway.cli.eval", "score a model, with intervals and the chance level"),
    "report": ("cutaway.cli.report", "compare runs: scores, differences, answers, curves, cost"),
    "data": ("cutaway.cli.data", "fetch, check, describe and clean training files"),
    "export": ("cutaway.cli.export", "write a model for llama.cpp, Ollama or ONNX"),
    "push": ("cutaway.cli.push", "publish a run on the hub"),
    "plan": ("cutaway.cli.plan", "parameters, FLOPs, memory, time and cost of a recipe before anything runs"),
    "plot": ("cutaway.cli.plot", "draw the curves of runs as a PNG"),
    "doctor": ("cutaway.cli.doctor", "what this machine can do"),
}
USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C.

    An error that nobody foresaw keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(str(error))
    except Stopped as stop:
        print(f"cutaway: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("cutaway: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if _is_disk_full(error):
            how = "by the same command" if arguments[0] in ("quickstart", "build") else "with --resume"
            return _fail(f"the disk is full: {error}; make room and go on {how}")
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        raise


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"cutaway {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(f"no command '{name}' (known: {', '.join(COMMANDS)})")
    _log_plain_lines()
    code: int | None = importlib.import_module(COMMANDS[name][0]).main(rest)
    return code or 0


def help_text() -> str:
    """The table of commands."""
    width = max(map(len, COMMANDS))
    lines = ["usage: cutaway COMMAND ...", "", "A small GPT from raw text to a chat model, with the covers off.", ""]
    lines += [f"  {name:<{width}}  {description}" for name, (_, description) in COMMANDS.items()]
    lines += ["", "`cutaway COMMAND --help` explains every setting of a command; `cutaway --version` names this one."]
    return "\n".join(lines)


def _fail(message: str) -> int:
    print(f"cutaway: error: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _is_disk_full(error: BaseException) -> bool:
    """True also where a library wraps the system's error in its own, as safetensors does."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def _log_plain_lines() -> None:
    logger = logging.getLogger("cutaway")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


if __name__ == "__main__":
    sys.exit(main())
