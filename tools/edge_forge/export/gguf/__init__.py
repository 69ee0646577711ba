"""Hugging Face models and peft adapters as GGUF files, and llama.cpp (in child processes) to quantise and run them.

`model.convert` writes a model, `lora.convert` an adapter, `engine` runs llama.cpp. What differs between families of
models stands in `families`, what differs between tokenizers in `vocabulary`.
"""

MODEL_FILE, ADAPTER_FILE = "f16.gguf", "adapter.gguf"
