"""The verbs of `edge-agent fleet`: many devices of one broker.

A file of its own because these verbs name no single device.
"""

from __future__ import annotations

import argparse
from typing import Any

from edge_agent.cli.common_options import broker_options, config_option


def add_fleet_verbs(verbs: Any) -> None:
    """Their arguments."""
    fleet = verbs.add_parser("fleet", help="many devices of one broker: a table of them")
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


def _place(verb: argparse.ArgumentParser) -> None:
    config_option(verb)
    broker_options(verb, device=False)
    verb.set_defaults(device="any", model=None)


def fleet_status(options: argparse.Namespace) -> int:
    """The table of devices."""
    from edge_agent.app.fleet import status

    return status(options)
