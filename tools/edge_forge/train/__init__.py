"""Training: LoRA and full fine-tuning of an encoder with a linear head, by transformers' Trainer and peft.

A run reads top to bottom in `session`. `launch.train` starts it in a worker process; `presets.settings` makes its
settings; `predict.predict` gives a result's logits in PyTorch. Only what runs in the worker imports torch.
"""
