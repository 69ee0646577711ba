"""`edge-agent`: verbs and their arguments; what they do lives in `app`, `demo` and the rooms.

Exit codes (docs/decisions/0081): 0 done; 1 failed, also a `doctor`, `check-config` or `service status` that finds
something wrong; 2 called wrongly, also with settings that cannot be used; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edge_agent.base.errors import ConfigError, EdgeError, UsageError
from edge_agent.cli.verbs import parser as build_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if "verb" not in options:
        parser.print_help()
        return 2
    try:
        return int(options.verb(options) or 0)
    except (UsageError, ConfigError) as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 2
    except EdgeError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("edge-agent: interrupted", file=sys.stderr)
        return 130
