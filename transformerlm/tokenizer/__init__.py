"""Bytes and ids: pre-tokenization, byte-level BPE training, and the tokenizer that uses its result.

`train_bpe` learns a vocabulary and merges from text files. `Tokenizer` turns text into ids and back, exactly
as GPT-2 does with the same files, or, with another pattern, one of its successors. `StreamingDecoder` turns ids into
text as they are generated.
"""

from transformerlm.hparams import END_OF_TEXT
from transformerlm.tokenizer.bpe_trainer import count_pretokens, learn_merges, train_bpe
from transformerlm.tokenizer.io import gpt2_bytes_to_unicode
from transformerlm.tokenizer.streaming import StreamingDecoder
from transformerlm.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Tokenizer",
    "StreamingDecoder",
    "train_bpe",
    "count_pretokens",
    "learn_merges",
    "gpt2_bytes_to_unicode",
    "END_OF_TEXT",
]
