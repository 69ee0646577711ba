"""Chat templates of several model families, shortened, with a dialogue and the prompts that they make of it."""

from __future__ import annotations

from typing import NamedTuple

DIALOGUE = [
    {"role": "user", "content": " Is it's <b>5°</b>? "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And now?"},
]


class Family(NamedTuple):
    """A template, the special tokens of its tokenizer, and the prompt of `DIALOGUE` up to the next answer."""

    source: str
    special_tokens: dict[str, str]
    prompt: str


LLAMA3 = Family(
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nIs it's <b>5°</b>?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
CHATML = Family(
    """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n Is it's <b>5°</b>? <|im_end|>\n"
    "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
)
MISTRAL = Family(
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}",
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "<s>[INST]  Is it's <b>5°</b>?  [/INST]Yes.</s>[INST] And now? [/INST]",
)
GEMMA = Family(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "<bos><start_of_turn>user\nIs it's <b>5°</b>?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n",
)
UNKNOWN_TOKEN = Family(
    "{{ unk_token }}{{ pad_token }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    "{% if bos_token is defined %}{{ bos_token }}{% endif %}",
    {"unk_token": "<unk>", "pad_token": "<pad>"},
    '<unk><pad>{"role": "user", "content": " Is it\'s <b>5°</b>? "}{"role": "assistant", "content": "Yes."}'
    '{"role": "user", "content": "And now?"}',
)
FAMILIES = {
    "llama3": LLAMA3,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "unknown token": UNKNOWN_TOKEN,
}
