"""Power modes of a simulated Jetson, whose nvpmodel is a script that asks and answers as the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.actuators import power_mode
from edge_agent.actuators.clock_cap import STATE_FILE, ClockCap
from edge_agent.actuators.power_mode import read_modes, set_mode
from edge_agent.base.errors import EdgeError, UsageError
from tests.support import sysfs

# Words of JetPack 6's nvpmodel. Mode 3 has fewer processors, so it needs a reboot.
NVPMODEL = """#!/bin/sh
cd "$(dirname "$0")/../.."
[ "$1" = -m ] || exit 9
if [ "$2" = 3 ]; then
  echo "NVPM WARN: Golden image context is already created"
  echo "NVPM WARN: Reboot required for changing to this power mode: 3"
  echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
  read -r answer
  if [ "$answer" = YES ] || [ "$answer" = yes ]; then touch rebooted; exit 0; fi
  echo "NVPM ERROR: bad input!" >&2
  echo "NVPM ERROR: optMask is 1, no request for power mode" >&2
  exit 255
fi
[ ! -e closed ] || { echo "NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13" >&2; exit 255; }
printf 'pmode:%04d fmode:quiet' "$2" > var/lib/nvpmodel/status
"""


@pytest.fixture
def orin(tmp_path: Path) -> sysfs.Tree:
    tree = sysfs.orin_nano(tmp_path)
    tree.write("etc/nvpmodel.conf", sysfs.ORIN_MODES)
    tree.write("var/lib/nvpmodel/status", "pmode:0000 fmode:quiet\n")
    tree.write("usr/sbin/nvpmodel", NVPMODEL).chmod(0o755)
    return tree


def current(tree: sysfs.Tree) -> str:
    modes = read_modes(tree.root)
    assert modes is not None
    return str(modes.current)


@pytest.mark.parametrize("wanted", ["25W", "25w", "1"])
def test_a_mode_is_set_by_name_or_number(orin: sysfs.Tree, wanted: str) -> None:
    assert set_mode(orin.root, wanted) == "the power mode is 25W (mode 1); before: 15W (mode 0)"
    assert current(orin) == "25W (mode 1)"
    assert set_mode(orin.root, wanted) == "the power mode is 25W (mode 1) already"


def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_reboots(orin: sysfs.Tree) -> None:
    with pytest.raises(EdgeError, match=r"7W \(mode 3\) needs a reboot, so it was not set") as caught:
        set_mode(orin.root, "7W")
    assert caught.value.remedy == "sudo nvpmodel -m 3, and answer yes"
    assert current(orin) == "15W (mode 0)"
    assert not (orin.root / "rebooted").exists()


def test_a_mode_that_is_not_there_is_named_with_those_that_are(orin: sysfs.Tree) -> None:
    with pytest.raises(UsageError, match="no power mode '40W'") as caught:
        set_mode(orin.root, "40W")
    assert caught.value.remedy == "there are: 15W (0), 25W (1), MAXN_SUPER (2), 7W (3)"


def test_what_nvpmodel_refuses_is_told_in_its_words(orin: sysfs.Tree) -> None:
    orin.write("closed", "")
    with pytest.raises(EdgeError, match=r"is not 25W \(mode 1\): NVPM ERROR: Error opening") as caught:
        set_mode(orin.root, "25W")
    assert caught.value.remedy == "sudo edge-agent power-mode 25W"


def test_an_nvpmodel_that_cannot_run_or_does_not_end_is_a_sentence(
    orin: sysfs.Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin.write("usr/sbin/nvpmodel", "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(power_mode, "TIMEOUT_S", 0.2)
    with pytest.raises(EdgeError, match="has not ended"):
        set_mode(orin.root, "25W")
    (orin.root / "usr/sbin/nvpmodel").unlink()
    with pytest.raises(EdgeError, match="cannot be run"):
        set_mode(orin.root, "25W")


def test_a_machine_without_modes_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no power modes"):
        set_mode(tmp_path, "25W")


def clocks(tree: sysfs.Tree, hertz: int) -> Path:
    """The GPU's clock, whose highest value is now `hertz`."""
    folder = "sys/class/devfreq/17000000.gpu"
    tree.write(f"{folder}/available_frequencies", "306000000 408000000 510000000 624750000\n")
    return tree.write(f"{folder}/max_freq", f"{hertz}\n")


def test_a_cap_is_not_given_back_over_another_mode(orin: sysfs.Tree) -> None:
    cap = clocks(orin, 624_750_000)
    held = ClockCap(orin.root, orin.root / "state")
    assert held.set(0.7) is None
    set_mode(orin.root, "25W")
    clocks(orin, 510_000_000)  # what the new mode allows
    held.restore()
    assert int(cap.read_text()) == 510_000_000
    assert held.set(0.7) is None
    assert int(cap.read_text()) == 306_000_000, "a share of the new mode's clock"
    held.restore()
    assert int(cap.read_text()) == 510_000_000


def test_what_a_killed_daemon_left_is_not_put_back_over_another_mode(orin: sysfs.Tree) -> None:
    cap = clocks(orin, 624_750_000)
    assert ClockCap(orin.root, orin.root / "state").set(0.7) is None
    set_mode(orin.root, "25W")
    clocks(orin, 510_000_000)
    ClockCap(orin.root, orin.root / "state")
    assert int(cap.read_text()) == 510_000_000
    assert not (orin.root / "state" / STATE_FILE).exists()
