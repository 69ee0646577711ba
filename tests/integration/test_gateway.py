"""`edge-agent gateway` as a real process between programs of others and a real agent with a real generator."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import generators, pages
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need

HI: Any = [{"role": "user", "content": "Once upon a time"}]
DOCS = Path(__file__).resolve().parents[2] / "docs"
TOKEN = "0123456789abcdef0123"
LONG = {"max_tokens": 400, "temperature": 1.5, "seed": 7, "extra_body": {"grammar": "root ::= [a-z ] root"}}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """The generator `tiny-llama` with the adapter `home-commands`, one sequence, and the embedder `vectors`."""
    need("llama_cpp", "gguf", "starlette", "uvicorn", "openai", "httpx", "langchain_openai")
    folder = tmp_path_factory.mktemp("device")
    with Mosquitto(folder) as broker:
        found = generators.installed(
            folder, broker, adapters=("home-commands",), device="demo", name="tiny-llama", sequences=1
        )
        found.config.write_text(found.config.read_text().replace('["llamacpp"]', '["llamacpp", "echo"]'))
        found.install(echo_package(folder / "vectors", "vectors", kind="embed"))
        with running(found):
            yield found


@contextmanager
def gateway(agent: AgentProcess, *options: str) -> Iterator[str]:
    """The address of a gateway; it ends by SIGTERM as a service does."""
    with served("--config", str(agent.config), *options) as found:
        yield found


@contextmanager
def served(*options: str) -> Iterator[str]:
    """As `gateway`, with these options alone."""
    command = [sys.executable, "-m", "edge_agent", "gateway", *options, "--listen-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "Ctrl-C ends it" in line, line
            yield next(word for word in line.split() if word.startswith("http://")).rstrip(";")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in {0, -signal.SIGTERM}


@pytest.fixture(scope="module")
def address(agent: AgentProcess) -> Iterator[str]:
    with gateway(agent) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=address, api_key="none needed", max_retries=0) as found:
        yield found


def test_the_openai_package_chats_with_a_model_and_its_adapters(client: Any) -> None:
    whole = client.chat.completions.create(model="tiny-llama", messages=HI, max_tokens=12, seed=1)
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.choices[0].finish_reason in {"stop", "length"}
    stream = client.chat.completions.create(
        model="demo/tiny-llama", messages=HI, max_tokens=12, seed=1, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    adapted = client.chat.completions.create(
        model="tiny-llama/home-commands", messages=HI, max_tokens=12, seed=1, logprobs=True
    )
    assert adapted.choices[0].logprobs.content
    assert adapted.choices[0].message.content != text


def test_the_page_works_as_printed(agent: AgentProcess) -> None:
    page = (DOCS / "gateway.md").read_text(encoding="utf-8")
    program, (command,) = printed(page)[0], pages.commands(page)
    assert command.words[:2] == ("edge-agent", "gateway")
    with served(*command.words[2:], "--port", str(agent.port)) as address:
        here = program.replace("http://127.0.0.1:8089/v1", address)
        done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_the_page_of_the_client_streams_as_printed(agent: AgentProcess) -> None:
    """The page's other programs run in test_client."""
    program = printed((DOCS / "client.md").read_text(encoding="utf-8"))[2]
    here = program.replace('"localhost"', f'"127.0.0.1:{agent.port}"')
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def printed(page: str) -> list[str]:
    """The Python programs of a page."""
    return [body for language, body in pages.FENCE.findall(page) if language == "python"]


def test_an_answer_follows_a_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}},
        "required": ["on"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "switch", "schema": schema}}
    found = client.chat.completions.create(model="tiny-llama", messages=HI, response_format=form, max_tokens=100)
    assert isinstance(json.loads(found.choices[0].message.content)["on"], bool)


def test_the_openai_package_embeds(client: Any) -> None:
    texts = [f"text {number}" for number in range(40)]
    found = client.embeddings.create(model="vectors", input=texts)  # as base64, which the package asks for itself
    assert [one.index for one in found.data] == list(range(40))
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    for packed, listed in zip(found.data, plain.data, strict=True):
        assert packed.embedding == pytest.approx(listed.embedding, abs=1e-6)
        assert math.isclose(sum(value * value for value in packed.embedding), 1.0, abs_tol=1e-3)
    assert found.usage.total_tokens > 0


def test_models_are_listed_as_they_are_asked(client: Any) -> None:
    listed = [model.id for model in client.models.list()]
    assert sorted(listed) == ["tiny-llama", "tiny-llama/home-commands", "vectors"]
    assert client.models.retrieve("tiny-llama/home-commands").owned_by == "demo"


def test_refusals_of_the_device_are_errors_of_the_openai_package(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="no model 'typo'"):
        client.chat.completions.create(model="typo", messages=HI)
    with pytest.raises(openai.NotFoundError, match="no adapter 'typo'"):
        list(client.chat.completions.create(model="tiny-llama/typo", messages=HI, stream=True))
    with pytest.raises(openai.BadRequestError, match="json_schema") as schema:
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
        client.chat.completions.create(model="tiny-llama", messages=HI, response_format=form)
    assert schema.value.code == "invalid"
    with pytest.raises(openai.BadRequestError, match="takes text or texts") as form_error:
        client.chat.completions.create(model="vectors", messages=HI)
    assert form_error.value.code == "wrong-form"
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="tiny-llama", messages=HI, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.InternalServerError) as late:
        client.chat.completions.create(
            model="tiny-llama", messages=HI, max_tokens=400, extra_body={"deadline_s": 0.001}
        )
    assert late.value.status_code in {503, 504}


def test_a_stream_that_is_left_frees_the_models_only_sequence(client: Any) -> None:
    stream = client.chat.completions.create(model="tiny-llama", messages=HI, stream=True, **LONG)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    began_s = time.monotonic()
    found = client.chat.completions.create(model="tiny-llama", messages=HI, max_tokens=1)
    assert found.choices[0].message.content is not None
    print(f"\nanswered {time.monotonic() - began_s:.2f} s after the stream was left")


def test_langchain_chats(address: str) -> None:
    import httpx
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    with httpx.Client() as http:
        same: Any = {"base_url": address, "api_key": "x", "http_client": http}
        chat = ChatOpenAI(model="tiny-llama", max_tokens=8, seed=1, temperature=0, **same)  # type: ignore[call-arg]
        whole = chat.invoke("Once upon a time").content
        assert "".join(str(part.content) for part in chat.stream("Once upon a time")) == whole
        vectors = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, **same)
        assert len(vectors.embed_documents(["a", "b"])) == 2


def test_it_serves_a_whole_broker_behind_a_token(agent: AgentProcess, tmp_path: Path) -> None:
    import openai

    (tmp_path / "tokens").touch(mode=0o600)
    (tmp_path / "tokens").write_text(TOKEN)
    with gateway(agent, "--all", "--token-file", str(tmp_path / "tokens"), "--listen", "0.0.0.0") as found:
        here = found.replace("0.0.0.0", "127.0.0.1")
        with openai.OpenAI(base_url=here, api_key=TOKEN, max_retries=0) as client:
            until_s = time.monotonic() + 10
            while not (listed := [model.id for model in client.models.list()]) and time.monotonic() < until_s:
                time.sleep(0.05)
            assert "demo/tiny-llama/home-commands" in listed
            assert client.chat.completions.create(
                model="demo/tiny-llama/home-commands", messages=HI, max_tokens=2
            ).choices
            with pytest.raises(openai.InternalServerError, match="nobody listens"):
                client.chat.completions.create(model="nobody/tiny-llama", messages=HI, max_tokens=2)
        with pytest.raises(urllib.error.HTTPError) as denied:
            urllib.request.urlopen(f"{here}/models")
        with denied.value:
            assert denied.value.code == 401


def test_a_device_that_nobody_knows_is_said(agent: AgentProcess) -> None:
    command = [sys.executable, "-m", "edge_agent", "gateway", "--config", str(agent.config), "--listen-port", "0"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--device", "nobody"], **options) as process:  # type: ignore[call-overload]
        said = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
    assert said.startswith("edge-agent: nobody has published no status: is the name right, does it run?"), said


def test_what_cannot_be_started_is_a_sentence(agent: AgentProcess, address: str) -> None:
    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "edge_agent", "gateway", "--config", str(agent.config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    code, said = run("--listen", "0.0.0.0", "--port", "1")  # said before a broker is looked for
    assert (code, "could ask without a token" in said) == (2, True), said
    code, said = run("--listen-port", "70000")
    assert (code, "'70000' is no port" in said) == (2, True), said
    taken = address.rpartition(":")[2].removesuffix("/v1")
    code, said = run("--listen-port", taken)
    assert (code, f"cannot listen on 127.0.0.1:{taken}" in said) == (2, True), said
    code, said = run("--port", "1")
    assert (code, "Traceback" in said) == (1, False), said
