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


class WrittenFamily(NamedTuple):
    """A template as a family of models carries it, its special tokens, and the tokens that open and close its turns."""

    source: str
    special_tokens: dict[str, str]
    marks: tuple[str, ...]


LLAMA2 = WrittenFamily(
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ("<s>", "</s>"),
)
QWEN3 = WrittenFamily(
    "{%- if messages[0].role == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    '    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and '
    "not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n"
    "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- for message in messages %}\n    {%- if message.content is string %}\n"
    "        {%- set content = message.content %}\n    {%- else %}\n        {%- set content = '' %}\n    {%- endif %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- elif message.role == \"assistant\" %}\n        {%- set reasoning_content = '' %}\n"
    "        {%- if message.reasoning_content is string %}\n"
    "            {%- set reasoning_content = message.reasoning_content %}\n        {%- else %}\n"
    "            {%- if '</think>' in content %}\n"
    "                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1]"
    ".lstrip('\\n') %}\n                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "            {%- endif %}\n        {%- endif %}\n        {%- if loop.index0 > ns.last_query_index %}\n"
    "            {%- if loop.last or (not loop.last and reasoning_content) %}\n"
    "                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + "
    "'\\n</think>\\n\\n' + content.lstrip('\\n') }}\n            {%- else %}\n"
    "                {{- '<|im_start|>' + message.role + '\\n' + content }}\n            {%- endif %}\n"
    "        {%- else %}\n            {{- '<|im_start|>' + message.role + '\\n' + content }}\n        {%- endif %}\n"
    "        {{- '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}",
    {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ("<|im_start|>", "<|im_end|>"),
)
PHI3 = WrittenFamily(
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
)
DEEPSEEK_R1_DISTILL = WrittenFamily(
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}"
    "{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}"
    "{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}"
    "{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}",
    {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
)
SMOLLM2 = WrittenFamily(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    ("<|im_start|>", "<|im_end|>"),
)
SMOLLM3 = WrittenFamily(
    "{%- if enable_thinking is not defined -%}\n{%- set enable_thinking = true -%}\n{%- endif -%}\n"
    '{%- if messages[0].role == "system" -%}\n  {%- set system_message = messages[0].content -%}\n'
    '  {%- if "/no_think" in system_message -%}\n    {%- set reasoning_mode = "/no_think" -%}\n'
    '  {%- else -%}\n    {%- set reasoning_mode = "/think" -%}\n  {%- endif -%}\n'
    '  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}\n'
    '{%- else -%}\n  {%- set reasoning_mode = "/think" -%}\n{%- endif -%}\n{{- "<|im_start|>system\\n" -}}\n'
    '{{- "## Metadata\\n\\n" -}}\n{{- "Knowledge Cutoff Date: June 2025\\n" -}}\n'
    '{{- "Reasoning Mode: " + reasoning_mode + "\\n\\n" -}}\n{{- "## Custom Instructions\\n\\n" -}}\n'
    '{%- if custom_instructions -%}\n  {{- custom_instructions + "\\n\\n" -}}\n'
    '{%- else -%}\n  {{- "You are a helpful AI assistant named SmolLM.\\n\\n" -}}\n{%- endif -%}\n'
    '{{- "<|im_end|>\\n" -}}\n{%- for message in messages -%}\n'
    '  {%- set content = message.content if message.content is string else "" -%}\n'
    '  {%- if message.role == "user" -%}\n'
    '    {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}\n'
    '  {%- elif message.role == "assistant" -%}\n    {% generation %}\n'
    '    {%- if reasoning_mode == "/think" -%}\n'
    '      {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}\n    {%- else -%}\n'
    '      {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}\n'
    "    {%- endif -%}\n    {% endgeneration %}\n  {%- endif -%}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
    '  {%- if reasoning_mode == "/think" -%}\n    {{ "<|im_start|>assistant\\n" }}\n  {%- else -%}\n'
    '    {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n"  }}\n  {%- endif -%}\n{%- endif -%}\n',
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    ("<|im_start|>", "<|im_end|>"),
)
GRANITE = WrittenFamily(
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n"
    '    {%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday\'s Date: " + '
    "strftime_now('%B %d, %Y')[:0] + \".\\nYou are Granite, developed by IBM.\" %}\n"
    "    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}\n"
    "{%- for message in loop_messages %}\n"
    "    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}\n"
    "    {%- if loop.last and add_generation_prompt %}\n"
    "        {{- '<|start_of_role|>assistant' }}\n        {{- '<|end_of_role|>' }}\n    {%- endif %}\n{%- endfor %}",
    {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"},
    ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
)
TINYLLAMA = WrittenFamily(
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    ("</s>",),
)
WRITTEN = {
    "llama 2": LLAMA2,
    "llama 3": WrittenFamily(
        LLAMA3.source,
        LLAMA3.special_tokens,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "qwen 2": WrittenFamily(CHATML.source, CHATML.special_tokens, ("<|im_start|>", "<|im_end|>")),
    "qwen 3": QWEN3,
    "gemma": WrittenFamily(GEMMA.source, GEMMA.special_tokens, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "mistral": WrittenFamily(MISTRAL.source, MISTRAL.special_tokens, ("<s>", "</s>")),
    "phi 3": PHI3,
    "deepseek r1 distill": DEEPSEEK_R1_DISTILL,
    "smollm2": SMOLLM2,
    "smollm3": SMOLLM3,
    "granite": GRANITE,
    "tinyllama": TINYLLAMA,
}
"""The templates of twelve families, in their own words but for tools, which nobody sends here."""
