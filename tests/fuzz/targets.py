"""All fuzz targets by name. A file of its own because the runner imports it with the parsers instrumented."""

from __future__ import annotations

from tests.fuzz import device_targets, differential_targets, forge_targets, later_targets

TARGETS = {
    **device_targets.TARGETS,
    **forge_targets.TARGETS,
    **later_targets.TARGETS,
    **differential_targets.TARGETS,
}
