"""Run by `sandbox.py` in a process of its own: give up the rights that code needs to do harm, then run that code.

    python -I -S sandbox_child.py SECONDS MEGABYTES

Standard input is a nonce and the programs, with a NUL between them; standard output is told the nonce once all of them
have run to their end, else what ended them. Only the standard library is imported. Exit code 64 says that a right could
not be given up, and standard output why: nothing was run then.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
import traceback
import types

REFUSED = 64
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
CREATE_RULESET, RESTRICT_SELF = 444, 446
LANDLOCK = 3
"""Least version, the first that knows a right to truncate."""
WRITES = 0b101_1111_1111_0010
"""Landlock's rights to write, truncate, remove and make files of every kind."""


def give_up_rights() -> None:
    """A network and a process table of its own, both empty, and no right to write, make or remove a file. OSError where
    the system has no means for it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
        return result

    must(libc.unshare(NEW_USER | NEW_PROCESSES | NEW_NETWORK), "namespaces")
    must(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
    if must(libc.syscall(CREATE_RULESET, None, 0, 1), "Landlock") < LANDLOCK:
        raise OSError(f"Landlock: older than version {LANDLOCK}")
    # A ruleset that handles these rights and then allows none of them, anywhere.
    handled = ctypes.create_string_buffer(struct.pack("Q", WRITES), 8)
    rules = must(libc.syscall(CREATE_RULESET, handled, 8, 0), "Landlock")
    must(libc.syscall(RESTRICT_SELF, rules, 0), "Landlock")
    os.close(rules)


def run(seconds: int, megabytes: int) -> None:
    """Run the programs in this process, within its limits, and end it. It ends when the one that waits for it does."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    said, *programs = sys.stdin.buffer.read().decode().split("\0")
    report = os.dup(1)
    for number in (0, 1):
        os.dup2(2, number)  # where nothing comes from, and what is written is lost
    for what, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        for program in programs:
            exec(compile(program, "<answer>", "exec"), main.__dict__)
    except BaseException as error:
        said = traceback.format_exception_only(error)[-1]
    os.write(report, said.encode("utf-8", "replace")[:1000])
    os._exit(0)


if __name__ == "__main__":
    try:
        give_up_rights()
    except (OSError, AttributeError) as error:
        print(error)
        sys.exit(REFUSED)
    child = os.fork()
    if not child:
        run(int(sys.argv[1]), int(sys.argv[2]))
    # The child is the first of its process table: all that it started ends with it.
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    code = os.WEXITSTATUS(status)
    sys.exit(1 if code == REFUSED else code)
