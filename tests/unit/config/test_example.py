"""The example file is the model's own source: every key is in it, and it says what the program does."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from edge_agent.config.example import WIDTH, example_toml, field_docs
from edge_agent.config.load import load
from edge_agent.config.settings import Settings

SHIPPED = Path(__file__).parents[3] / "systemd" / "edge-agent.toml"


def test_the_example_loads_to_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    for active in (False, True):
        path.write_text(example_toml(active), encoding="utf-8")
        assert load(path, {}) == Settings()


def test_with_defaults_made_active_every_value_is_really_there() -> None:
    lines = example_toml(active=True).splitlines()
    assert "keepalive_s = 30" in lines
    assert '#password_file = "/etc/edge-agent/mqtt-password"' in lines


def test_every_example_value_of_an_unset_key_is_accepted(tmp_path: Path) -> None:
    text = re.sub(r"^#(\w+ = )", r"\1", example_toml(), flags=re.MULTILINE)
    text = text.replace("enabled = false", "enabled = true")
    path = tmp_path / "all.toml"
    path.write_text(text, encoding="utf-8")
    settings = load(path, {})
    assert settings.thermal.soft_limit_c == 75.0
    assert str(settings.mqtt.tls.key) == "/etc/edge-agent/device.key"


def test_every_field_is_explained_and_no_line_is_too_long() -> None:
    def visit(section: type) -> None:
        docs = field_docs(section)
        for item in fields(section):  # type: ignore[arg-type]
            default = item.default_factory() if callable(item.default_factory) else None
            if is_dataclass(default):
                assert inspect.getdoc(type(default))
                visit(type(default))
            else:
                assert len(docs[item.name]) > 20, f"{section.__name__}.{item.name} has no docstring"

    visit(Settings)
    assert max(map(len, example_toml().splitlines())) <= WIDTH


def test_the_shipped_file_is_the_generated_one() -> None:
    """Renew it with: python -m edge_agent.config.example > systemd/edge-agent.toml"""
    assert SHIPPED.read_text(encoding="utf-8") == example_toml()
