"""The verbs of `edge-agent`: their arguments, and what they do: a few lines each that hand the arguments on and print.

A verb returns its exit code and imports the modules that it needs itself, so that `--help` answers at once and a verb
pays only for itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.base.completion import add_completion, completion
from edge_agent.base.errors import ConfigError, UsageError
from edge_agent.base.terminal import print_json
from edge_agent.base.units import bytes_text
from edge_agent.cli.common_options import broker_options, config_option, generation_options, port
from edge_agent.cli.fleet_verbs import add_fleet_verbs
from edge_agent.cli.package_verbs import add_package_verbs

BENCH_TEXT = "turn off the light in the hallway"


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
    _add_chat(verbs)
    _add_bench(verbs)
    _add_bridges(verbs)
    _add_monitoring(verbs)
    add_fleet_verbs(verbs)
    _add_orders(verbs)
    add_package_verbs(verbs)
    _add_operating(verbs)
    _add_service(verbs)
    add_completion(verbs, "edge-agent").set_defaults(verb=complete)
    return parser


def _add_run(verbs: Any) -> None:
    verb = verbs.add_parser("run", help="the daemon")
    config_option(verb)
    verb.add_argument("--sysroot", type=Path, help="read sensors under this folder (default: /)")
    verb.set_defaults(verb=run)


def _add_demo(verbs: Any) -> None:
    verb = verbs.add_parser("demo", help="train, package, install and query adapters on this machine")
    verb.add_argument(
        "--build", type=Path, default=Path("build"), help="where everything is built and kept (default: build)"
    )
    verb.add_argument(
        "--models", type=Path, help="folder of the shipped recipes (default: models, or those in the wheel)"
    )
    verb.add_argument(
        "--stay",
        action="store_true",
        help="keep broker and daemon until Ctrl-C, to be asked (always, with --recipe)",
    )
    verb.add_argument("--port", type=int, default=0, help="the broker's port on 127.0.0.1 (default: a free one)")
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="end after the first answers, by a head on the frozen base")
    what.add_argument("--llm", action="store_true", help="a language model instead: answers are streamed (llama.cpp)")
    what.add_argument(
        "--recipe", type=Path, action="append", metavar="RECIPE",
        help="build and serve this recipe until Ctrl-C; repeat for several (default: the shipped ones, shown once)",
    )  # fmt: skip
    verb.set_defaults(verb=demo)


def _add_infer(verbs: Any) -> None:
    verb = verbs.add_parser("infer", help="ask a model over MQTT")
    config_option(verb)
    verb.add_argument(
        "model", help="its name on the device (`edge-agent models` lists them); an adapter is named by --adapter"
    )
    verb.add_argument("text", nargs="+", help="one or more texts; several are one batch")
    verb.add_argument(
        "--pair", action="append", default=[], metavar="TEXT",
        help="the second text, for a task that takes pairs; repeat it for each text (default: none)",
    )  # fmt: skip
    context = verb.add_mutually_exclusive_group()
    context.add_argument(
        "--context",
        metavar="TEXT",
        help="for a model of answers: what holds the answers to the questions (default: none)",
    )
    context.add_argument("--context-file", type=Path, metavar="FILE", help="the same out of a file (default: none)")
    verb.add_argument("--adapter", help="the adapter to use (default: none, the model alone)")
    verb.add_argument("--top-k", type=int, metavar="N", help="how many labels to return (default: 1)")
    verb.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="below this score the answer is out of scope (default: the package's own)",
    )
    verb.add_argument("--priority", type=int, metavar="N", help="0 (first) to 9 (default: 5)")
    verb.add_argument(
        "--deadline", type=float, metavar="S", help="seconds until the answer is useless (default: 10; streams 60)"
    )
    verb.add_argument("--prompt", action="store_true", help="for a generator: the text is a prompt as it stands")
    verb.add_argument("--chat", action="store_true", help="for a generator: the text is what a user says to it")
    verb.add_argument("--stream", action="store_true", help="for a generator: show the answer as it comes")
    generation_options(verb)
    broker_options(verb)
    verb.add_argument("--json", action="store_true", help="the whole reply as JSON (default: a line for people)")
    verb.set_defaults(verb=infer)


def _add_chat(verbs: Any) -> None:
    verb = verbs.add_parser("chat", help="talk to a generator over MQTT; /new begins anew, the end of input ends it")
    config_option(verb)
    verb.add_argument(
        "model", help="its name on the device (`edge-agent models` lists them); an adapter is named by --adapter"
    )
    verb.add_argument("--adapter", help="the adapter to use (default: none, the model alone)")
    verb.add_argument(
        "--system", metavar="TEXT", help="what the model is told before the conversation (default: nothing)"
    )
    verb.add_argument(
        "--deadline", type=float, default=120.0, metavar="S", help="seconds for one answer (default: 120)"
    )
    generation_options(verb)
    broker_options(verb)
    verb.set_defaults(verb=chat)


def _add_bench(verbs: Any) -> None:
    verb = verbs.add_parser("bench", help="load a running agent over MQTT: rate and latency")
    config_option(verb)
    verb.add_argument(
        "model", help="its name on the device (`edge-agent models` lists them); an adapter is named by --adapter"
    )
    verb.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME",
        help="repeat for several, used in turn (default: none, the model alone)",
    )
    verb.add_argument("--text", default=BENCH_TEXT, help=f"what is asked (default: {BENCH_TEXT!r})")
    verb.add_argument("--pair", metavar="TEXT", help="the second text, for a task that takes pairs (default: none)")
    verb.add_argument("--prompt", action="store_true", help="a generator: the text is a prompt, answers are streamed")
    verb.add_argument("--chat", action="store_true", help="a generator: the text is what a user says to it")
    verb.add_argument("--clients", type=int, default=8, metavar="N", help="requests open at once (default: 8)")
    verb.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long to ask (default: 5)")
    verb.add_argument("--deadline", type=float, metavar="S", help="seconds for one answer (default: 30; streams 60)")
    generation_options(verb)
    broker_options(verb)
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.set_defaults(verb=bench)


def _add_orders(verbs: Any) -> None:
    words = {
        "load": "bring a model into memory over MQTT; also lifts its quarantine",
        "unload": "end a model's worker over MQTT; the next request loads it again",
    }
    for name, text in words.items():
        verb = verbs.add_parser(name, help=text)
        config_option(verb)
        verb.add_argument("model", help="its name on the device (`edge-agent models` lists them)")
        broker_options(verb)
        verb.add_argument("--json", action="store_true", help="the whole reply as JSON (default: a line for people)")
        verb.set_defaults(verb=order, order=name)


def _add_bridges(verbs: Any) -> None:
    verb = verbs.add_parser("gateway", help="an OpenAI-compatible HTTP service that asks over MQTT")
    config_option(verb)
    verb.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    verb.add_argument("--listen-port", type=port, default=8089, metavar="N", help="0 for a free one (default: 8089)")
    verb.add_argument(
        "--token-file", type=Path, metavar="FILE", help="bearer tokens, one a line (default: none is needed)"
    )
    verb.add_argument("--all", action="store_true", help="for all devices of the broker (default: for --device alone)")
    verb.add_argument(
        "--deadline", type=float, default=120.0, metavar="S", help="seconds for one answer (default: 120)"
    )
    broker_options(verb)
    verb.set_defaults(verb=gateway, model="any")
    verb = verbs.add_parser("metrics", help="what a device says, or all of a broker, as metrics for Prometheus")
    config_option(verb)
    verb.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    verb.add_argument("--listen-port", type=port, default=9789, metavar="N", help="0 for a free one (default: 9789)")
    verb.add_argument(
        "--textfile", type=Path, metavar="FILE", help="write FILE.prom for node_exporter instead (default: over HTTP)"
    )
    verb.add_argument(
        "--otlp", metavar="URL", help="to an OpenTelemetry collector instead, with spans (default: over HTTP)"
    )
    verb.add_argument(
        "--interval",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds between two text files, or two sends (default: 15)",
    )
    verb.add_argument("--all", action="store_true", help="for all devices of the broker (default: for --device alone)")
    verb.add_argument(
        "--dashboards",
        type=Path,
        metavar="DIR",
        help="write Grafana's dashboards and Prometheus' alert rules into DIR, and end (default: export)",
    )
    broker_options(verb)
    verb.set_defaults(verb=metrics, model="any")
    verb = verbs.add_parser("console", help="a page for the browser that shows and asks the devices of a broker")
    config_option(verb)
    verb.add_argument(
        "--broker", metavar="URL", help="the broker's WebSockets (default: ws://HOST:9001, HOST as in the settings)"
    )
    verb.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    verb.add_argument("--listen-port", type=port, default=8088, metavar="N", help="0 for a free one (default: 8088)")
    verb.add_argument(
        "--write", type=Path, metavar="FILE", help="write the page to a file and end (default: serve it until Ctrl-C)"
    )
    verb.set_defaults(verb=console)


def _add_monitoring(verbs: Any) -> None:
    verb = verbs.add_parser("top", help="what a device does now, live in the terminal")
    config_option(verb)
    broker_options(verb)
    verb.add_argument("--once", action="store_true", help="print the next report and end")
    verb.add_argument("--seconds", type=float, metavar="S", help="end after so long (default: by Ctrl-C)")
    verb.set_defaults(verb=top, model="any")
    verb = verbs.add_parser("record", help="write a device's reports to a CSV file")
    config_option(verb)
    verb.add_argument("file", type=Path, help="the table; rows are added to one that exists")
    verb.add_argument("--seconds", type=float, default=3600.0, metavar="S", help="how long to record (default: 3600)")
    broker_options(verb)
    verb.set_defaults(verb=record, model="any")
    verb = verbs.add_parser("plot", help="draw what was recorded")
    verb.add_argument("table", type=Path, help="as `record` wrote it")
    verb.add_argument("picture", type=Path, help="to write: .png, .svg or .pdf")
    verb.set_defaults(verb=plot)


def _add_operating(verbs: Any) -> None:
    verb = verbs.add_parser("doctor", help="check board, sensors, runtimes, permissions, broker")
    config_option(verb)
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.set_defaults(verb=doctor)
    verb = verbs.add_parser("power-mode", help="the power modes of a Jetson: list them, or set one")
    verb.add_argument("mode", nargs="?", metavar="MODE", help="its name or number; needs root (default: list them)")
    config_option(verb)
    verb.set_defaults(verb=power_mode)
    verb = verbs.add_parser("check-config", help="check a settings file")
    verb.add_argument("file", type=Path, nargs="?", help="settings (default: /etc/edge-agent/edge-agent.toml)")
    verb.add_argument("--example", action="store_true", help="print a commented file with every setting instead")
    verb.set_defaults(verb=check_config)


def _add_service(verbs: Any) -> None:
    verb = verbs.add_parser("service", help="the systemd service")
    verb.add_argument("action", choices=("install", "uninstall", "status"), help="what to do with it")
    verb.add_argument(
        "--root", type=Path, metavar="DIR", help="a root filesystem to prepare before flashing (default: /)"
    )
    verb.add_argument(
        "--python", metavar="FILE", help="the interpreter of the service, as seen on the device (default: this one)"
    )
    verb.add_argument(
        "--drop-in", action="append", metavar="NAME", help="a drop-in to use; repeat for several (default: none)"
    )
    verb.add_argument("--purge", action="store_true", help="with uninstall: also remove settings and state")
    verb.set_defaults(verb=service)


def run(options: argparse.Namespace) -> int:
    """The daemon."""
    from edge_agent.app.daemon import run

    return run(options.config, options.sysroot)


def demo(options: argparse.Namespace) -> int:
    """Train, package, install and query on this machine."""
    from edge_agent.demo import show

    if options.recipe:
        return show.serve_recipes(options.build, options.recipe, options.port)
    if options.llm:
        return show.run_llm(options.build, options.models, options.port, options.stay)
    return show.run(options.build, options.models, options.port, options.stay, options.quick)


def infer(options: argparse.Namespace) -> int:
    """Ask a model over MQTT; 1 for any status but 200."""
    from edge_agent.app.ask import answer_text, ask, form_hint, generation_params, stream

    params = {"top_k": options.top_k, "threshold": options.threshold}
    body = _question(options)
    body["params"] = {name: value for name, value in params.items() if value is not None} | generation_params(options)
    for name in ("adapter", "priority"):
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    deadline_s = options.deadline if options.deadline is not None else (60.0 if options.stream else 10.0)
    shown: list[str] = []
    if options.stream:

        def show(text: str) -> None:
            if text and not options.json:
                shown.append("some")
                _write(text)

        reply = stream(options, options.model, body, deadline_s, show)
    else:
        reply = ask(options, options.model, body, deadline_s)
    served = reply["status"] == 200
    if options.stream and not served and shown and not options.json:
        print()  # the reason begins a line of its own
    if options.json:
        print_json(reply)
    else:
        hint = form_hint(reply, body)
        print(answer_text(reply, hint), file=sys.stdout if served else sys.stderr)
    return 0 if served else 1


def _question(options: argparse.Namespace) -> dict[str, Any]:
    texts: list[str] = options.text
    if not (options.prompt or options.chat or options.stream):
        return _texts_asked(texts, _second_texts(options))
    if options.pair or options.context or options.context_file:
        raise UsageError("--pair and --context belong to classifiers of pairs and to answers; a generator has neither")
    if len(texts) != 1 or (options.prompt and options.chat):
        raise UsageError("a generator is asked one thing at a time, by --prompt or by --chat")
    return {"messages": [{"role": "user", "content": texts[0]}]} if options.chat else {"prompt": texts[0]}


def _second_texts(options: argparse.Namespace) -> list[str]:
    """What stands beside the texts: the texts of --pair, or one context for all of them."""
    if options.context is None and options.context_file is None:
        pairs: list[str] = options.pair
        return pairs
    if options.pair:
        raise UsageError("--context and --pair are both the second text: give one of them")
    if options.context is not None:
        return [options.context] * len(options.text)
    from edge_agent.app.ask import context_of

    return [context_of(options.context_file)] * len(options.text)


def _texts_asked(texts: list[str], pairs: list[str]) -> dict[str, Any]:
    if not pairs:
        return {"text": texts[0]} if len(texts) == 1 else {"texts": texts}
    if len(pairs) != len(texts):
        raise UsageError(f"{len(texts)} texts and {len(pairs)} --pair: each text needs one")
    if len(texts) == 1:
        return {"text": texts[0], "text_pair": pairs[0]}
    return {"texts": texts, "text_pairs": pairs}


def chat(options: argparse.Namespace) -> int:
    """Talk to a generator over MQTT."""
    from edge_agent.app.ask import chat

    def read() -> str | None:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None

    return chat(options, read, _write, lambda text: print(text, file=sys.stderr))


def _write(text: str) -> None:
    print(text, end="", flush=True)


def bench(options: argparse.Namespace) -> int:
    """Load a running agent over MQTT; 1 when nothing was served."""
    from edge_agent.app.bench import bench_text, load_test

    figures = load_test(options)
    if options.json:
        print_json(figures)
    else:
        print(bench_text(figures))
    return 0 if "200" in figures["statuses"] else 1


def gateway(options: argparse.Namespace) -> int:
    """An OpenAI-compatible HTTP service over MQTT."""
    from edge_agent.app.gateway import gateway

    return gateway(options)


def metrics(options: argparse.Namespace) -> int:
    """An exporter for Prometheus."""
    from edge_agent.app.metrics import metrics

    return metrics(options)


def console(options: argparse.Namespace) -> int:
    """The page for the browser."""
    from edge_agent.app.console import console

    return console(options)


def order(options: argparse.Namespace) -> int:
    """Load or unload a model of a running agent over MQTT."""
    from edge_agent.app.ask import answer_text, order

    reply = order(options, options.order, {"model": options.model})
    done = reply["status"] == 200
    if options.json:
        print_json(reply)
    elif done:
        held = (reply.get("result") or {}).get("footprint_bytes")
        print(f"{options.order} {options.model}: done" + (f", it holds {bytes_text(held)}" if held else ""))
    else:
        print(answer_text(reply), file=sys.stderr)
    return 0 if done else 1


def top(options: argparse.Namespace) -> int:
    """What a device does now."""
    from edge_agent.app.top import top

    return top(options)


def record(options: argparse.Namespace) -> int:
    """Its reports into a table."""
    from edge_agent.app.top import record

    return record(options)


def plot(options: argparse.Namespace) -> int:
    """A table as a picture."""
    from edge_agent.app.telemetry_plot import plot

    return plot(options)


def doctor(options: argparse.Namespace) -> int:
    """Check this board; 1 when something does not work."""
    from edge_agent.app.operate import doctor

    return doctor(options.config, options.json)


def power_mode(options: argparse.Namespace) -> int:
    """List the board's power modes, or set one; 1 where it cannot be set."""
    from edge_agent.app.operate import power_mode

    return power_mode(options.config, options.mode)


def check_config(options: argparse.Namespace) -> int:
    """Check a settings file; 1 when it is not sound."""
    from edge_agent.app.wiring import topics
    from edge_agent.config import load
    from edge_agent.lifecycle import service_user

    if options.example:
        from edge_agent.config.example import example_toml

        print(example_toml(), end="")
        return 0
    settings, problems = load.check(options.file)
    device = ""
    if not problems:
        try:
            device = topics(settings).device
        except ConfigError as error:
            problems = (error,)
    source = options.file or (load.DEFAULT_PATH if load.default_exists() else None)
    paths = service_user.paths_to_read(settings, source)
    hidden = service_user.unreadable(paths)
    problems += tuple(ConfigError(said, None, service_user.remedy(paths[words])) for words, said in hidden.items())
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        print(f"edge-agent: {count} in the settings", file=sys.stderr)
        return 1
    where = source or "no settings file, defaults alone"
    print(f"{where}: sound; device {device!r}, broker {settings.mqtt.host}:{settings.mqtt.broker_port}")
    return 0


def service(options: argparse.Namespace) -> int:
    """The systemd service."""
    from edge_agent.app.operate import service

    return service(options.action, options.root, options.python, options.drop_in, options.purge)


def complete(options: argparse.Namespace) -> int:
    """The shell's completion."""
    print(completion(parser(), options.shell))
    return 0
