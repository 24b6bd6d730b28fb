"""The kernels of the numba backend: the same results as the pure-Python backend, a few dozen times as fast.

Importing a module of this package imports numba, but compiles nothing. The modules, from the bottom up:

    jit                    numba's compiler, and the folder on disk that keeps what it made
    intrinsics             the few machine operations that Python has no words for
    pretokenize_gpt2       bytes → where the pre-tokens start, 64 bytes at once, in GPT-2's pattern
    pretokenize_regex      the same, one pre-token after another, in the patterns of its successors
    chunks            a text of any length, through a small buffer
    special_tokens    where the special tokens are
    keys              a pre-token as a key of two 64-bit words, and its hash
    merger            one pre-token → its ids
    whole_words       pre-tokens that have an id without being merged
    encoder           bytes → ids, by way of a cache of the pre-tokens seen
    decoder           ids → bytes
    cutter            a text → its documents, packed, and whether they are UTF-8
    text_hasher       texts → a number each
    counter           bytes → distinct pre-tokens and how often they occur
    pair_queue        which pair is merged next
    trainer_steps     what happens when a pair is merged
    trainer           counted pre-tokens → merges

In all of them masks, keys and hashes are `uint64`, and places, lengths and counts are `int64`. Never mix the two in one
expression: numba, like numpy, would convert them to float.
"""
