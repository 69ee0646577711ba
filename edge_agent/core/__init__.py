"""Pure decisions: the time is an argument, the outcome a value. No clock, no I/O, no event loop."""
