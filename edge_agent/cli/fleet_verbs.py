"""The verbs of `edge-agent fleet`: many devices of one broker.

A file of its own because these verbs name no single device.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_agent.cli.common_options import broker_options, config_option


def add_fleet_verbs(verbs: Any) -> None:
    """Their arguments."""
    fleet = verbs.add_parser("fleet", help="many devices of one broker: a table of them, and rollouts")
    below = fleet.add_subparsers(title="verbs", metavar="VERB", required=True)
    verb = below.add_parser("status", help="one table of all devices, those in trouble first")
    _place(verb)
    verb.add_argument("devices", nargs="*", metavar="NAME", help="devices, with * and ? as wildcards (default: all)")
    verb.add_argument("--trouble", action="store_true", help="only devices with which something is wrong")
    verb.add_argument("--model", metavar="NAME", help="only devices that hold it (default: all)")
    verb.add_argument(
        "--seconds", type=float, default=12.0, metavar="S",
        help="wait so long for reports, which have heat and refusals; ends when all have come (default: 12)",
    )  # fmt: skip
    verb.add_argument("--watch", action="store_true", help="show it again and again, until Ctrl-C")
    verb.add_argument("--json", action="store_true", help="as JSON (default: a table for people)")
    verb.set_defaults(verb=fleet_status)
    _add_rollout(below)


def _add_rollout(below: Any) -> None:
    verb = below.add_parser("rollout", help="give devices another desired state, in waves that stop and return")
    _place(verb)
    verb.add_argument(
        "plan", type=Path, nargs="?", metavar="PLAN", help="a TOML file (docs/fleet.md), or the options below"
    )
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--resume", dest="do_resume", action="store_true", help="go on with the one that was interrupted")
    what.add_argument("--abort", dest="do_abort", action="store_true", help="return all devices that were given it")
    what.add_argument("--status", dest="do_show", action="store_true", help="show how far it is")
    verb.add_argument(
        "--give", action="append", metavar="MODEL=sha256:HEX",
        help="a model's package; MODEL=none removes it; repeat for several (default: the plan's)",
    )  # fmt: skip
    verb.add_argument(
        "--source", action="append", metavar="sha256:HEX=URL",
        help="where a package is; repeat for several (default: the plan's)",
    )  # fmt: skip
    verb.add_argument(
        "--devices", metavar="NAMES", help="names with * and ?, by commas (default: the plan's, else all)"
    )
    verb.add_argument(
        "--waves", metavar="SHARES", help="shares of all devices, by commas (default: the plan's, else 5%%,25%%,100%%)"
    )
    verb.add_argument(
        "--within", dest="within_s", type=float, metavar="S",
        help="seconds in which a wave must be applied (default: the plan's, else 3600)",
    )  # fmt: skip
    verb.add_argument(
        "--watch", dest="watch_s", type=float, metavar="S",
        help="seconds for which a wave is watched before the next one (default: the plan's, else 600)",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="the end as JSON (default: a line for each change)")
    verb.set_defaults(verb=fleet_rollout)


def _place(verb: argparse.ArgumentParser) -> None:
    config_option(verb)
    broker_options(verb, device=False)
    verb.set_defaults(device="any", model=None)


def fleet_status(options: argparse.Namespace) -> int:
    """The table of devices."""
    from edge_agent.app.fleet import status

    return status(options)


def fleet_rollout(options: argparse.Namespace) -> int:
    """A rollout in waves."""
    from edge_agent.app.fleet_rollout import rollout

    return rollout(options)
