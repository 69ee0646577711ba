"""Token generation by llama.cpp: many sequences in one batch, adapters by turns, prefixes kept.

    library    the C library: found, checked against this CPU, its log caught
    model      one GGUF file in memory: weights mapped, its vocabulary, its adapters
    context    the cache and the decode call
    slots      which sequence lies where in the cache, and what of a new prompt is there already (pure)
    plan       what the next decode call computes, and for which adapter (pure)
    calls      whether sequences decode in one call or one after the other: as measured (pure)
    sampler    from logits to a token
    session    the seam: jobs in, events out

Only this package's modules know llama.cpp; they need Python 3.10.
"""
