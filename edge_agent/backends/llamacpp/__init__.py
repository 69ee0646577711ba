"""Token generation with llama.cpp: sequences decoded in one batch, adapters in round robin, prefix cache.

    backend            the plug-in: capabilities, options, memory before a load
    session            jobs in, events out; a step's way is `LlamaSession.step`
    step_schedule      which tokens the next decode call computes, and with which adapter (pure)
    sequence_slots     which sequence uses which slot of the cache, and the prefix cache (pure)
    tuners             threads and batch size of decode calls, by measurement (pure)
    llama_context      the KV cache and the decode call
    model              one GGUF file in memory: weights, vocabulary, adapters
    sampler            from logits to a token
    grammar_client     grammars and JSON schemas of requests: asks the process that follows them
    grammar_process    that process: llguidance, with a limit of time for every operation
    json_schema        a schema as llguidance follows it exactly, or the place of what it does not (pure)
    ecma_pattern       a schema's `pattern` in Rust's regular expressions (pure)
    key_repeats        which tokens would repeat a name in an object (pure)
    library            the C library: found, checked against this CPU, its log captured

No module outside of this package uses llama.cpp.
"""
