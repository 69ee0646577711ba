"""The kinds of recipes: one `Kind` object for each value of `task.kind`, found by the registry.

Each kind has a file, however short: it is where a reader starts, and it is imported only when a recipe asks for it. To
add a kind, add a line to `registry.KINDS`, a file here, and its parts in `recipe`, `data`, `train`, `evaluate`, `plan`
and `report`; the commands need no change.
"""
