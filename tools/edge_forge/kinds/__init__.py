"""What a recipe can make: one `Kind` object for each value of `task.kind`, found by the registry."""
