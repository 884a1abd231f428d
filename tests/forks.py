"""Run the command in a forked process, which has loaded torch already: starting an interpreter takes 3 s."""

import os
import sys
import traceback

from fdqn import cli


def start(args, stdout, stderr):
    """Start the command with the given output descriptors and an empty input; return the process id."""
    if pid := os.fork():
        return pid
    for given, stream in ((os.open(os.devnull, os.O_RDWR), 0), (stdout, 1), (stderr, 2)):
        os.dup2(given, stream)
    main(args)
    raise AssertionError("never reached")


def main(args, **variables):
    """Call the command in a forked process, with the descriptors 0 to 2 as its streams, and end the process."""
    code = 1
    try:
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ.update(variables)
        code = cli.main(args)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def exit_code(pid):
    """Wait for a process and return its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
