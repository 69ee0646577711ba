"""A command beside other work: its progress is shown when it is asked for, and it does not outlast the block."""

import sys

import pytest

from edge_agent.base.errors import EdgeError
from edge_agent.demo import stage

WORKS = "import sys; print('half', file=sys.stderr); print('made')"


def test_what_it_says_is_held_back_until_its_result_is_asked_for(capfd):
    with stage.beside([sys.executable, "-c", WORKS]) as running:
        running._process.wait()
        running._readers[0].join()
        assert capfd.readouterr() == ("", "")
        assert running.result() == b"made\n"
        assert capfd.readouterr().err == "half\n"


def test_one_that_fails_is_an_error_with_what_it_said(capfd):
    with (
        stage.beside([sys.executable, "-c", "raise SystemExit('no base')"]) as running,
        pytest.raises(EdgeError, match="failed, see above"),
    ):
        running.result()
    assert capfd.readouterr().err == "no base\n"


def test_it_ends_with_the_block():
    with stage.beside([sys.executable, "-c", "import time; time.sleep(600)"]) as running:
        pass
    assert running._process.poll() is not None
