"""Arguments that several verbs of `edge-agent` have: the settings, the broker, how a generator answers, a port.

A file of its own because the verbs are in several.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def config_option(verb: argparse.ArgumentParser) -> None:
    """Where the settings are."""
    verb.add_argument("--config", type=Path, metavar="FILE", help="settings (default: /etc/edge-agent/edge-agent.toml)")


def generation_options(verb: argparse.ArgumentParser) -> None:
    """How a generator is to answer."""
    verb.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer (default: 256)")
    verb.add_argument("--temperature", type=float, metavar="T", help="0 (always the best token) to 2 (default: 0)")
    verb.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that make up P (default: 0.95; counts above temperature 0)",
    )
    verb.add_argument(
        "--seed", type=int, metavar="N", help="the same seed draws the same answer (default: another each time)"
    )
    verb.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer here; repeat for several (default: the model's own end)",
    )


def port(text: str) -> int:
    """A port to listen on."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; 0 to 65535 are")
    return int(text)


def broker_options(verb: argparse.ArgumentParser, *, device: bool = True) -> None:
    """Which broker, and which device is asked there."""
    if device:
        verb.add_argument("--device", help="the device to ask (default: the settings' own)")
    verb.add_argument("--host", help="the broker (default: the settings' own)")
    verb.add_argument("--port", type=int, help="the broker's port (default: the settings' own)")
    verb.add_argument("--protocol", choices=("auto", "5", "3.1.1"), help="version of MQTT (default: the settings' own)")
