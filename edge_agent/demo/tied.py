"""`python -m edge_agent.demo.tied PARENT COMMAND ...`: becomes COMMAND, which the kernel ends when the process PARENT
ends, by kill -9 too.

A file of its own because it is a program: to do this between fork and exec is not safe in a process with threads.
"""

import os
import signal
import sys

from edge_agent.worker.parent_death import die_with_parent

if __name__ == "__main__":
    die_with_parent(signal.SIGTERM, int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the stage's own commands
