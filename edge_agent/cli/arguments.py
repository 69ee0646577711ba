"""The verbs of `edge-agent` and their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.cli import actions


def parser() -> argparse.ArgumentParser:
    """All verbs; each sets `verb` to its action."""
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Serve small language models with LoRA adapters under RAM, heat and time budgets, over MQTT.",
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_run(verbs)
    _add_demo(verbs)
    _add_infer(verbs)
    _add_monitoring(verbs)
    _add_orders(verbs)
    _add_packages(verbs)
    _add_operating(verbs)
    _add_service(verbs)
    return parser


def _add_run(verbs: Any) -> None:
    verb = verbs.add_parser("run", help="the daemon")
    _config_option(verb)
    verb.add_argument("--sysroot", type=Path, help="read sensors under this folder instead of /")
    verb.set_defaults(verb=actions.run)


def _add_demo(verbs: Any) -> None:
    verb = verbs.add_parser("demo", help="train, package, install and query two adapters on this machine")
    verb.add_argument("--build", type=Path, default=Path("build"), help="where everything is built and kept")
    verb.add_argument("--models", type=Path, default=Path("models"), help="folder of the shipped recipes")
    verb.add_argument("--stay", action="store_true", help="keep broker and daemon running until Ctrl-C, to be asked")
    verb.add_argument("--port", type=int, default=0, help="the broker's port on 127.0.0.1 (default: a free one)")
    verb.add_argument("--llm", action="store_true", help="a language model instead: answers are streamed (llama.cpp)")
    verb.set_defaults(verb=actions.demo)


def _add_infer(verbs: Any) -> None:
    verb = verbs.add_parser("infer", help="ask a model over MQTT")
    _config_option(verb)
    verb.add_argument("model")
    verb.add_argument("text", nargs="+", help="one or more texts; several are one batch")
    verb.add_argument("--adapter", help="the adapter to use")
    verb.add_argument("--top-k", type=int, help="how many labels to return")
    verb.add_argument("--threshold", type=float, help="below this score the answer is out of scope")
    verb.add_argument("--priority", type=int, help="0 (first) to 9")
    verb.add_argument(
        "--deadline", type=float, metavar="S", help="seconds until the answer is useless (10; streams 60)"
    )
    verb.add_argument("--prompt", action="store_true", help="for a generator: the text is a prompt as it stands")
    verb.add_argument("--chat", action="store_true", help="for a generator: the text is what a user says to it")
    verb.add_argument("--stream", action="store_true", help="for a generator: show the answer as it comes")
    _generation_options(verb)
    _broker_options(verb)
    verb.add_argument("--json", action="store_true", help="the whole reply as JSON")
    verb.set_defaults(verb=actions.infer)
    verb = verbs.add_parser("chat", help="talk to a generator over MQTT; /new begins anew, the end of input ends it")
    _config_option(verb)
    verb.add_argument("model")
    verb.add_argument("--adapter", help="the adapter to use")
    verb.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    verb.add_argument("--deadline", type=float, default=120.0, metavar="S", help="seconds for one answer")
    _generation_options(verb)
    _broker_options(verb)
    verb.set_defaults(verb=actions.chat)
    verb = verbs.add_parser("bench", help="load a running agent over MQTT: rate and latency")
    _config_option(verb)
    verb.add_argument("model")
    verb.add_argument("--adapter", action="append", default=[], help="repeat for several, used in turn")
    verb.add_argument("--text", default="turn off the light in the hallway")
    verb.add_argument("--prompt", action="store_true", help="a generator: the text is a prompt, answers are streamed")
    verb.add_argument("--chat", action="store_true", help="a generator: the text is what a user says to it")
    verb.add_argument("--clients", type=int, default=8, help="requests open at once")
    verb.add_argument("--seconds", type=float, default=5.0)
    verb.add_argument("--deadline", type=float, metavar="S", help="seconds for one answer (30; streams 60)")
    _generation_options(verb)
    _broker_options(verb)
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=actions.bench)


def _add_orders(verbs: Any) -> None:
    words = {
        "load": "bring a model into memory over MQTT; also lifts its quarantine",
        "unload": "end a model's worker over MQTT; the next request loads it again",
    }
    for name, text in words.items():
        verb = verbs.add_parser(name, help=text)
        _config_option(verb)
        verb.add_argument("model")
        _broker_options(verb)
        verb.add_argument("--json", action="store_true", help="the whole reply as JSON")
        verb.set_defaults(verb=actions.order, order=name)


def _add_monitoring(verbs: Any) -> None:
    verb = verbs.add_parser("top", help="what a device does now, live in the terminal")
    _config_option(verb)
    _broker_options(verb)
    verb.add_argument("--once", action="store_true", help="print the next report and end")
    verb.add_argument("--seconds", type=float, help="end after so long")
    verb.set_defaults(verb=actions.top, model="any")
    verb = verbs.add_parser("record", help="write a device's reports to a CSV file")
    _config_option(verb)
    verb.add_argument("file", type=Path, help="the table; rows are added to one that exists")
    verb.add_argument("--seconds", type=float, default=3600.0)
    _broker_options(verb)
    verb.set_defaults(verb=actions.record, model="any")
    verb = verbs.add_parser("plot", help="draw what was recorded")
    verb.add_argument("table", type=Path, help="as `record` wrote it")
    verb.add_argument("picture", type=Path, help="to write: .png, .svg or .pdf")
    verb.set_defaults(verb=actions.plot)


def _add_packages(verbs: Any) -> None:
    verb = verbs.add_parser("install", help="verify, probe and activate a package")
    _config_option(verb)
    verb.add_argument("package", type=Path, help="a package: .tar or folder")
    verb.add_argument("--again", action="store_true", help="try a package whose trials were cut off three times")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=actions.install)
    verb = verbs.add_parser("models", help="what is installed")
    _config_option(verb)
    verb.add_argument("--why", action="store_true", help="why this variant of each, with what was measured here")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=actions.models)
    verb = verbs.add_parser("rollback", help="return a model to the version before")
    _config_option(verb)
    verb.add_argument("model")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=actions.rollback)
    verb = verbs.add_parser("remove", help="remove a model, or one of its adapters")
    _config_option(verb)
    verb.add_argument("model")
    verb.add_argument("--adapter")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=actions.remove)


def _add_operating(verbs: Any) -> None:
    verb = verbs.add_parser("doctor", help="check board, sensors, runtimes, permissions, broker")
    _config_option(verb)
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=actions.doctor)
    verb = verbs.add_parser("check-config", help="check a settings file")
    verb.add_argument("file", type=Path, nargs="?")
    verb.add_argument("--example", action="store_true", help="print a commented file with every setting instead")
    verb.set_defaults(verb=actions.check_config)


def _add_service(verbs: Any) -> None:
    verb = verbs.add_parser("service", help="the systemd service")
    verb.add_argument("action", choices=("install", "uninstall", "status"))
    verb.add_argument("--root", type=Path, help="a root filesystem to prepare before flashing")
    verb.add_argument("--python", help="the interpreter of the service, as seen on the device")
    verb.add_argument("--drop-in", action="append", metavar="NAME", help="a drop-in to use; repeat for several")
    verb.add_argument("--purge", action="store_true", help="with uninstall: also remove settings and state")
    verb.set_defaults(verb=actions.service)


def _config_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=Path, metavar="FILE", help="settings (default /etc/edge-agent/edge-agent.toml)")


def _generation_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer (256)")
    verb.add_argument("--temperature", type=float, metavar="T", help="0 (always the best token) to 2")
    verb.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that make up P")
    verb.add_argument("--seed", type=int, help="the same seed draws the same answer")
    verb.add_argument("--stop", action="append", metavar="TEXT", help="end the answer here; repeat for several")


def _broker_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", help="the device to ask (default: the settings' own)")
    verb.add_argument("--host", help="the broker (default: the settings' own)")
    verb.add_argument("--port", type=int)
    verb.add_argument("--protocol", choices=("auto", "5", "3.1.1"))
