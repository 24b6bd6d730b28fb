"""Encode random strings by the compiled layer, the plain layer and tiktoken, and stop at the first difference.

    uv run python tests/tokenizer/fuzz.py --strings 1000000

With `--pattern`, pre-tokenization is that of another model, with GPT-2's merges. The test suite does the same for a few
thousand strings. GPT-2's files are those of `tests/data`. Random bytes, which tiktoken does not take, are
compared between the two layers only.
"""

import argparse
import random
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import conftest  # the one beside this file
import test_patterns  # and this
import tiktoken

from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.tokenizer import backend as layers
from transformerlm.tokenizer.backend import Specials
from transformerlm.tokenizer.plain import PlainEncoder
from transformerlm.tokenizer.utf8 import to_text
from transformerlm.tokenizer.validation import TokenIds, ordinary_ids

ALPHABETS = [
    "etaoinshrdlu  '",
    "'sdmtlvre lx'",
    "ab  \n\t\r\x0b\x1c.1",
    "aAbB'sS'LLſǅʰ你\u0301 /\r\n!1",
    "a1. \u0085\u00a0\u1680\u2003\u2028\u205f\u3000\n",
    "0123456789½²٣४Ⅷ ",
    "aéßσжъあ漢字한국नमस्ते\u0301\u200d ",
    "😀👨\u200d👩\u200d👧🏽 !?",
    ["<|endoftext|>", "<|end", "oftext|>", "<", "|", ">", " ", "a"],
    ["    ", "\n", "def ", "return", "self.", "(x, y)", "==", "'", "''", "_"],
]
INVALID = [
    b"\xff",
    b"\xc0\x80",
    b"\xe0\x81\x81",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe4\xbd",
    b"\xa0",
    b"a",
    b" ",
]
BATCH = 2_000


def main() -> int:
    """Fuzz; return 1 if a difference was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pattern", choices=test_patterns.PUBLISHED, default="gpt2")
    options = parser.parse_args()
    layers.SHORT, layers.TEXT = -1, layers.Threshold(0, 0)  # always the compiled layer
    with tempfile.TemporaryDirectory() as name:
        folder = conftest.unpack_samples(Path(name))
        gpt2 = Tokenizer.from_files(folder / "gpt2_vocab.json", folder / "gpt2_merges.txt", [END_OF_TEXT])
        oracle = conftest.tiktoken_from(folder, test_patterns.PUBLISHED[options.pattern])
    tokenizer = Tokenizer(gpt2.vocab, gpt2.merges, [END_OF_TEXT], pattern=options.pattern)
    plain = PlainEncoder(
        TokenIds(ordinary_ids(tokenizer.vocab, set(tokenizer.special_tokens.values()), "vocab")),
        tokenizer.merges,
        pattern=options.pattern,
    )
    generator = random.Random(options.seed)
    start = time.perf_counter()
    for done in range(0, options.strings, BATCH):
        texts = [random_text(generator) for _ in range(BATCH // 2)]
        data = [random_bytes(generator) for _ in range(BATCH // 2)]
        if not same(tokenizer, plain, oracle, texts, data):
            return 1
        if done % (50 * BATCH) == 0:
            print(f"{done + BATCH:,} strings, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(f"{options.strings:,} strings from seed {options.seed}: no difference", file=sys.stderr)
    return 0


def same(
    tokenizer: Tokenizer, plain: PlainEncoder, oracle: tiktoken.Encoding, texts: list[str], data: list[bytes]
) -> bool:
    """Return whether all ways give the same ids and decode to the text; print the first that does not."""
    specials = Specials(tokenizer.special_tokens)
    compiled = tokenizer.encode_batch([*texts, *data], num_threads=2)
    for text, ids in zip(chain(texts, map(to_text, data)), compiled, strict=True):
        if ids.tolist() != plain.encode(text, specials):
            print(f"the layers differ on {text!r}", file=sys.stderr)
            return False
    for text, ids in zip(texts, compiled, strict=False):
        if ids.tolist() != oracle.encode(text, allowed_special="all") or tokenizer.decode(ids.tolist()) != text:
            print(f"tiktoken differs on {text!r}", file=sys.stderr)
            return False
    for text, ids in zip(data, compiled[len(texts) :], strict=True):
        if tokenizer.decode_bytes(ids) != text:
            print(f"{text!r} does not survive", file=sys.stderr)
            return False
    return True


def random_text(generator: random.Random) -> str:
    """Return a text from one or two alphabets, mostly short, sometimes longer than a chunk of the scanner."""
    alphabet = list(generator.choice(ALPHABETS))
    if generator.random() < 0.3:
        alphabet += generator.choice(ALPHABETS)
    if generator.random() < 0.1:
        alphabet += [chr(generator.choice([0x80, 0x800, 0x10000]) + generator.randrange(0x4000)) for _ in range(20)]
    return "".join(generator.choices(alphabet, k=random_length(generator)))


def random_bytes(generator: random.Random) -> bytes:
    """Return bytes that are mostly not UTF-8."""
    if generator.random() < 0.3:
        return generator.randbytes(random_length(generator))
    alphabet = [*INVALID, *(character.encode() for character in generator.choice(ALPHABETS))]
    return b"".join(generator.choices(alphabet, k=random_length(generator)))


def random_length(generator: random.Random) -> int:
    """Return a length: about 20, rarely thousands."""
    return int(generator.expovariate(1 / 20)) if generator.random() < 0.999 else generator.randrange(10_000)


if __name__ == "__main__":
    sys.exit(main())
