"""What config.json may leave empty, and what of it a GGUF file cannot say."""

import json

import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.export.gguf import families, vocabulary

LLAMA = {"model_type": "llama", "hidden_act": "silu"}


def test_a_share_of_the_head_that_is_null_is_the_whole_one():
    scaling = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": None}
    families.family({**LLAMA, "rope_parameters": scaling})
    with pytest.raises(ConfigError, match=r"^base\.source: partial_rotary_factor beside .*'linear'"):
        families.family({**LLAMA, "rope_parameters": {**scaling, "partial_rotary_factor": 0.5}})


@pytest.mark.parametrize(("begin", "found"), [(1, "<s>"), ([1], None), (True, None), (9, None), (None, None)])
def test_a_begin_that_is_no_id_of_the_tokenizer_is_none(tmp_path, begin, found):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "<s>": 1}}}))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": begin}))
    assert vocabulary.special_tokens(tmp_path).get("bos_token") == found
