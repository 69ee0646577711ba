"""`edge-agent demo`, and the stage it stands on."""
