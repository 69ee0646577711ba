"""Hugging Face models and peft adapters as GGUF files, and llama.cpp (in child processes) to quantise and run them.

`convert` runs the steps. `write_model.convert` writes a model, `write_adapter.convert` an adapter, `engine` runs
llama.cpp. `families` holds what differs between families of models, `vocabulary` what differs between tokenizers.
"""

MODEL_FILE, ADAPTER_FILE = "f16.gguf", "adapter.gguf"
