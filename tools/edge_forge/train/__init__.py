"""Training by transformers' Trainer and peft: what a run may be told, and the worker process that runs it.

`methods` says what is trained. For each kind, `*_job` starts a run in a worker process, and `*_session` is the run from
top to bottom. Only what runs in the worker imports torch.
"""
