"""The whole agent in one process, run from one seed: real agent, core, protocol and link; simulated broker, workers
and board behind their ports; faults; invariants after every step. `python -m tests.support.whole --seed 17`."""
