"""`edge-agent`: verbs and their arguments; what they do lives in `app`, `demo` and the rooms.

Exit codes (docs/decisions/0081): 0 done; 1 failed, also a `doctor`, `check-config` or `service status` that finds
something wrong; 2 called wrongly, also with settings that cannot be used; 130 interrupted. With `--json` a failure is
an object with `cause` (`base.causes.Cause`) and `reason` on standard output, beside the sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edge_agent.base.causes import Cause
from edge_agent.base.errors import ConfigError, EdgeError, UsageError
from edge_agent.base.terminal import clean_streams, hang_up, last_resort, print_json, system_error
from edge_agent.cli.verbs import parser as build_parser

__all__ = ["main"]
PROGRAM = "edge-agent"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Nothing that a verb raises leaves it as a traceback."""
    with clean_streams():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if "verb" not in options:
        parser.print_help()
        return 2
    try:
        return int(options.verb(options) or 0)
    except EdgeError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        if getattr(options, "json", False):
            print_json({"cause": error.cause.value, "reason": str(error)})
        return 2 if isinstance(error, UsageError | ConfigError) else 1
    except BrokenPipeError:
        hang_up()
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"{PROGRAM}: {system_error(error)}", file=sys.stderr)
        if getattr(options, "json", False):
            print_json({"cause": Cause.STORE.value, "reason": system_error(error)})
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: the program ends with one line and a file
        print(last_resort(PROGRAM, error, options.verb.__name__), file=sys.stderr)
        return 1
