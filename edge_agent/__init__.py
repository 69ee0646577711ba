"""edge-agent: serve small language models with LoRA adapters under RAM, heat and time budgets."""

__version__ = "0.1.0"
