"""What the verbs do: a few lines each that hand their arguments on and print; returns are exit codes.

Modules are imported by the verb that needs them, so that `--help` answers at once and a verb pays only for itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from edge_agent.base.errors import ConfigError, UsageError
from edge_agent.base.units import bytes_text


def run(options: argparse.Namespace) -> int:
    """The daemon."""
    from edge_agent.app.daemon import run

    return run(options.config, options.sysroot)


def demo(options: argparse.Namespace) -> int:
    """Train, package, install and query on this machine."""
    if options.llm:
        from edge_agent.demo.llm import run
    else:
        from edge_agent.demo.show import run
    return run(options.build, options.models, port=options.port, stay=options.stay)


def infer(options: argparse.Namespace) -> int:
    """Ask a model over MQTT; 1 for any status but 200."""
    from edge_agent.app.ask import answer_text, ask, generation_params, generator_hint, stream

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
        print(json.dumps(reply, ensure_ascii=False))
    else:
        hint = generator_hint(options, body, reply)
        print(answer_text(reply, hint), file=sys.stdout if served else sys.stderr)
    return 0 if served else 1


def _question(options: argparse.Namespace) -> dict[str, Any]:
    texts: list[str] = options.text
    if not (options.prompt or options.chat or options.stream):
        return {"text": texts[0]} if len(texts) == 1 else {"texts": texts}
    if len(texts) != 1 or (options.prompt and options.chat):
        raise UsageError("a generator is asked one thing at a time, by --prompt or by --chat")
    return {"messages": [{"role": "user", "content": texts[0]}]} if options.chat else {"prompt": texts[0]}


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
    print(json.dumps(figures, ensure_ascii=False) if options.json else bench_text(figures))
    return 0 if "200" in figures["statuses"] else 1


def order(options: argparse.Namespace) -> int:
    """Load or unload a model of a running agent over MQTT."""
    from edge_agent.app.ask import answer_text, order

    reply = order(options, options.order, {"model": options.model})
    done = reply["status"] == 200
    if options.json:
        print(json.dumps(reply, ensure_ascii=False))
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


def install(options: argparse.Namespace) -> int:
    """Verify, probe and activate a package."""
    from edge_agent.app.packages import install

    return _print_report(install(options.config, options.package, again=options.again), options.json)


def models(options: argparse.Namespace) -> int:
    """What is installed."""
    from edge_agent.app.packages import models, models_text

    listed = models(options.config)
    if options.json:
        print(json.dumps(listed, ensure_ascii=False, indent=2))
    else:
        print(models_text(listed, options.why))
    return 0


def rollback(options: argparse.Namespace) -> int:
    """Return a model to the version before."""
    from edge_agent.app.packages import rollback

    return _print_report(rollback(options.config, options.model), options.json)


def remove(options: argparse.Namespace) -> int:
    """Remove a model, or one of its adapters."""
    from edge_agent.app.packages import remove

    return _print_report(remove(options.config, options.model, options.adapter), options.json)


def doctor(options: argparse.Namespace) -> int:
    """Check this board; 1 when something does not work."""
    from edge_agent.app.operate import doctor

    return doctor(options.config, options.json)


def check_config(options: argparse.Namespace) -> int:
    """Check a settings file; 1 when it is not sound."""
    from edge_agent.app.wiring import topics
    from edge_agent.config import load

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
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        print(f"edge-agent: {count} in the settings", file=sys.stderr)
        return 1
    source = options.file or (load.DEFAULT_PATH if load.DEFAULT_PATH.exists() else "no settings file, defaults alone")
    print(f"{source}: sound; device {device!r}, broker {settings.mqtt.host}:{settings.mqtt.broker_port}")
    return 0


def service(options: argparse.Namespace) -> int:
    """The systemd service."""
    from edge_agent.app.operate import service

    return service(options.action, options.root, options.python, options.drop_in, options.purge)


def _print_report(report: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(report["text"])
    return 0
