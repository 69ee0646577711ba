"""Settings: the order of the sources, and a clear sentence for every way in which they can be wrong."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError
from edge_agent.config.fields import Unfit, specs
from edge_agent.config.load import ENV_PREFIX, as_table, check, device_id, load
from edge_agent.config.settings import DeviceSettings, Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "edge-agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), env or {})
    return str(caught.value)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {}) == Settings()


def test_the_file_goes_before_the_defaults_and_the_environment_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[mqtt]\nhost = "broker.lan"\nkeepalive_s = 20\n[mqtt.tls]\nenabled = true\n')
    settings = load(path, {"EDGE_AGENT__MQTT__HOST": "other.lan", "EDGE_AGENT__MQTT__TLS__ENABLED": "no"})
    assert (settings.mqtt.host, settings.mqtt.keepalive_s, settings.mqtt.tls.enabled) == ("other.lan", 20, False)


def test_lists_numbers_and_paths_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {
        "EDGE_AGENT__MODELS__RESIDENT": "minilm, home-intents",
        "EDGE_AGENT__WORKER__THREADS": "3",
        "EDGE_AGENT__TELEMETRY__INTERVAL_S": "2.5",
        "EDGE_AGENT__STORE__STATE_DIR": "state",
        "EDGE_AGENT_UNRELATED": "ignored",
    }
    settings = load(write(tmp_path, ""), env)
    assert settings.models.resident == ("minilm", "home-intents")
    assert (settings.worker.threads, settings.telemetry.interval_s) == (3, 2.5)
    assert settings.store.state_dir == tmp_path / "state"


def test_an_empty_variable_unsets_what_the_file_sets(tmp_path: Path) -> None:
    path = write(tmp_path, "[worker]\nthreads = 2\n")
    assert load(path, {"EDGE_AGENT__WORKER__THREADS": ""}).worker.threads is None


def test_a_relative_path_starts_at_the_file(tmp_path: Path) -> None:
    settings = load(write(tmp_path, '[store]\nstate_dir = "state"\ntrust_root = "/etc/root.json"\n'), {})
    assert settings.store.state_dir == tmp_path / "state"
    assert settings.store.trust_root == Path("/etc/root.json")
    assert settings.store.inbox_path == tmp_path / "state" / "inbox"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[mqtt]\nprot = 1", "unknown key 'mqtt.prot' (did you mean mqtt.port?)"),
        ("[mqqt]\nport = 1", "unknown key 'mqqt' (did you mean mqtt?)"),
        ("port = 1", "unknown key 'port' (did you mean mqtt.port?)"),
        ("[mqtt]\nstate_dir = '/x'", "unknown key 'mqtt.state_dir' (did you mean store.state_dir?)"),
        ("[device]\nzzzzzzzz = 1", "unknown key 'device.zzzzzzzz' (known here: id)"),
        ("[mqtt]\nport = 70000", "mqtt.port is 70000; expected a whole number: from 1 to 65535"),
        ("[mqtt]\nport = true", "mqtt.port is True; expected a whole number"),
        ("[mqtt]\nport = 1.5", "mqtt.port is 1.5; expected a whole number"),
        ("[mqtt]\nprotocol = '4'", "mqtt.protocol is '4'; expected one of 'auto', '5', '3.1.1'"),
        ("[mqtt]\nprefix = 'a/#'", "mqtt.prefix is 'a/#'; expected a text: up to four topic levels"),
        ("[mqtt]\npools = 'kitchen'", "mqtt.pools is 'kitchen'; expected a list of texts"),
        ("[mqtt]\npools = ['a/b']", "mqtt.pools is ['a/b']; expected a list of texts: 1 to 64 letters"),
        ("[mqtt]\ntls = true", "mqtt.tls is True; it is a section, written as [mqtt.tls]"),
        ("[store]\nallow_unsigned = 'yes'", "store.allow_unsigned is 'yes'; expected true or false"),
        ("[store]\nstate_dir = ''", "store.state_dir is ''; expected a path"),
        ("[telemetry]\ninterval_s = nan", "telemetry.interval_s is nan; expected a number: from 1 to 3600"),
        ("[telemetry]\ninterval_s = 1" + "0" * 400, "expected a number: from 1 to 3600"),
        ("[device]\nid = 'a b'", "device.id is 'a b'; expected a text: 1 to 64 letters"),
        ("[mqtt.tls]\nca = '/x'", "mqtt.tls names certificates, but mqtt.tls.enabled is false"),
        ("[mqtt.tls]\nenabled=true\ncert='/x'", "mqtt.tls.cert and mqtt.tls.key belong together"),
        ("[mqtt]\npassword_file = '/x'", "mqtt.password_file is set without mqtt.username"),
        ("[limits]\nmessage_bytes = 2048", "limits.text_bytes (32768) is larger than limits.message_bytes (2048)"),
        ("[limits]\ndeadline_max_s = 1", "limits.deadline_default_s (30) is longer than limits.deadline_max_s (1)"),
        ("[models]\nresident = ['all', 'a']", 'models.resident holds "all" beside names'),
        ("[mqtt", "is not valid TOML: "),
        ("a = " + "[" * 5000, "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    if text.startswith("a = ["):
        assert problem(tmp_path, text).startswith(f"{tmp_path / 'edge-agent.toml'}: is ")
        return
    assert expected in problem(tmp_path, text)


def test_every_message_names_its_file_or_its_variable(tmp_path: Path) -> None:
    assert problem(tmp_path, "[mqtt]\nport = 0").startswith(str(tmp_path / "edge-agent.toml"))
    wrong = {"EDGE_AGENT__MQTT__PORT": "many"}
    assert problem(tmp_path, "", wrong) == "EDGE_AGENT__MQTT__PORT: is 'many'; expected a whole number: from 1 to 65535"
    unknown = {"EDGE_AGENT__MQTT__PROT": "1"}
    assert problem(tmp_path, "", unknown) == (
        "EDGE_AGENT__MQTT__PROT: unknown key 'mqtt.prot' (did you mean mqtt.port?)"
    )
    section = {"EDGE_AGENT__MQTT": "1"}
    assert "unknown key 'mqtt'" in problem(tmp_path, "", section)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "[mqtt]\nport = 0\nkeepalive_s = 1\n[nonsense]\n")
    settings, problems = check(path, {"EDGE_AGENT__WORKER__NICE": "99"})
    assert len(problems) == 4
    assert settings == Settings()
    with pytest.raises(ConfigError, match="4 problems in the settings"):
        load(path, {"EDGE_AGENT__WORKER__NICE": "99"})


def test_a_file_that_is_not_there_or_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"nowhere\.toml: cannot be read: No such file or directory \(`edge-agent check-config --example`",
    ):
        load(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 5"):
        load(binary, {})
    binary.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        load(binary, {})


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [("RaspberryPi.local", "raspberrypi"), ("Garten_Haus 2", "garten-haus-2"), ("x" * 80, "x" * 64)],
)
def test_the_device_is_named_after_its_host(hostname: str, expected: str) -> None:
    assert device_id(Settings(), hostname) == expected


def test_a_host_without_a_name_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device\.id: the host name 'localhost' does not name this device"):
        device_id(Settings(), "localhost")
    assert device_id(Settings(device=DeviceSettings(id="kitchen")), "localhost") == "kitchen"


def test_the_port_follows_tls(tmp_path: Path) -> None:
    assert Settings().mqtt.broker_port == 1883
    assert load(write(tmp_path, "[mqtt.tls]\nenabled = true"), {}).mqtt.broker_port == 8883
    assert load(write(tmp_path, "[mqtt]\nport = 1\n[mqtt.tls]\nenabled = true"), {}).mqtt.broker_port == 1


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().mqtt.port = 1  # type: ignore[misc]


def test_the_table_holds_plain_values() -> None:
    table = as_table(Settings())
    assert table["store"]["state_dir"] == "/var/lib/edge-agent"
    assert table["models"]["resident"] == ["all"]
    assert table["mqtt"]["tls"]["ca"] is None


@given(st.text(max_size=30))
def test_any_text_for_any_field_is_taken_or_refused_with_words(text: str) -> None:
    """No value of a variable makes the loader fail otherwise than by Unfit."""

    def visit(section: type) -> None:
        for spec in specs(section):
            if spec.is_section:
                visit(spec.kind)
                continue
            try:
                raw = spec.from_text(text)
                if raw is not None:
                    spec.checked(raw, Path("/etc"))
            except Unfit as refusal:
                assert str(refusal)

    visit(Settings)


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=4))
def test_an_environment_never_breaks_the_loader(variables: dict[str, str]) -> None:
    env = {f"{ENV_PREFIX}{key}": value for key, value in variables.items()}
    settings, problems = check(None, env)
    assert isinstance(settings, Settings)
    assert len(problems) == len(env)  # hardly a random text names a key


def test_no_default_breaks_its_own_rule() -> None:
    def visit(section: Any) -> None:
        for item, spec in zip(fields(section), specs(type(section)), strict=True):
            value = getattr(section, item.name)
            if is_dataclass(value):
                visit(value)
            elif value is not None:
                raw = str(value) if isinstance(value, Path) else value
                assert spec.checked(raw, Path("/")) == value, item.name
            if spec.example is not None:
                spec.checked(spec.example, Path("/"))

    visit(Settings())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[models]\ncontext = 100", "from 256 to"),
        ("[models]\nsequences = 0", "from 1 to 64"),
        ('[models]\nkv_type = "q4_0"', "f16"),
        ("[worker]\ndecode_threads = 0", "from 1 to 256"),
    ],
)
def test_a_generators_settings_are_checked(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=says):
        load(path, {})


def test_a_preference_is_written_as_models_prints_it_or_as_a_number_format(tmp_path: Path) -> None:
    path = tmp_path / "edge-agent.toml"
    path.write_text('[models]\nprefer = ["onnx/int8", "q4_k_m", "fp16"]\n')
    assert load(path, {}).models.prefer == ("onnx/int8", "q4_k_m", "fp16")
    path.write_text('[models]\nprefer = ["onnx/int8/fast"]\n')
    with pytest.raises(ConfigError, match="runtime and format such as 'onnx/int8', as `edge-agent models` shows them"):
        load(path, {})
