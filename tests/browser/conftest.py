"""The broker, the agents and the browser of the console's tests, once for each file of them."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from edge_agent.console.page_server import PAGE
from tests.browser.window import ACL, CHROMIUM, USERS, Place, Window, wobbling
from tests.support import generators, sysfs
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.needs import need


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    need("llama_cpp", "gguf")
    folder = tmp_path_factory.mktemp("console")
    websockets = free_port()
    pages = folder / "pages"
    pages.mkdir()
    shutil.copy(PAGE, pages)
    extra = ("allow_anonymous true", f"listener {websockets} 127.0.0.1", "protocol websockets", f"http_dir {pages}")
    board = sysfs.pi5(folder / "board")
    with Mosquitto(folder, users=USERS, acl=ACL, extra=extra) as broker:
        pi = AgentProcess(folder / "pi", broker.port, device="pi", sysroot=board.root)
        base = echo_package(folder)
        pi.install(base)
        pi.install(echo_adapter_package(folder, base, "one"))
        pi.install(echo_package(folder, "slow", delay_s=3.0))
        talker = generators.installed(folder / "talker", broker)
        with wobbling(board) as warm, running(pi), running(talker):
            yield Place(broker, websockets, pi, warm, talker)


@pytest.fixture(scope="session")
def chromium(place: Place) -> Iterator[Any]:
    """After the agents: playwright's loop runs in this thread, and so no other may be started in it."""
    need("playwright.sync_api")
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.fail("Chromium is not installed: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(chromium: Any, place: Place) -> Iterator[Window]:
    found = Window(chromium, place, [])
    yield found
    for context in chromium.contexts:
        context.close()
    assert found.complaints == []
