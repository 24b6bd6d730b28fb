"""Tokenizers of Hugging Face folders: what is written there loads and does the same, what is read does, too."""

import copy
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, processors
from tokenizers import pre_tokenizers as steps

from transformerlm.interop.tokenizer_json import read_tokenizer, write_tokenizer
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, gpt2_bytes_to_unicode, train_bpe
from transformerlm.tokenizer import backend as layers
from transformerlm.tokenizer.pretokenize import PATTERNS
from transformerlm.utils.errors import InteropError

TEXT = (
    "The cat's 12345 hats,\r\n  DON'T they? HTTPServer e\u0301te\u0301 नमस्ते 你好。\n\n\n\tx = y/z;  \n "
    "Über 3.14159 “quotes” 😀👩\u200d👧 <|endoftext|> and on\n  "
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = {byte: bytes([byte]) for byte in range(256)}

Read = Callable[[dict[str, Any]], Tokenizer]


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")


@pytest.fixture(scope="module")
def trained() -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    return train_bpe(iter([TEXT] * 3), 290, [], num_workers=1)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a `tokenizer.json` of this content."""

    def of(content: dict[str, Any]) -> Tokenizer:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return read_tokenizer(tmp_path)

    return of


def tokenizer_of(trained: tuple[dict[int, bytes], list[tuple[bytes, bytes]]], **options: Any) -> Tokenizer:
    """The special tokens stand first, as in SmolLM, and one entry is made by no merge."""
    tokens = [END_OF_TEXT.encode(), b"<|begin|>", *trained[0].values(), b" hats"]
    return Tokenizer(dict(enumerate(tokens)), trained[1], [END_OF_TEXT, "<|begin|>"], **options)


# Out


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_what_is_written_is_loaded_by_transformers(
    transformers: Any, trained: tuple, pattern: str, model_type: str, tmp_path: Path
) -> None:
    begins = "<|begin|>" if model_type == "llama" else None
    normalization = "NFC" if pattern == "qwen2" else None
    ours = tokenizer_of(
        trained,
        pattern=pattern,
        normalization=normalization,
        whole_words=pattern == "o200k",
        beginning_of_text=begins,
    )
    write_tokenizer(ours, tmp_path, context_length=77)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert theirs.is_fast
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ours.encode(TEXT)
    assert theirs(TEXT)["input_ids"] == ([1] if begins else []) + ours.encode(TEXT)
    assert theirs.decode(ours.encode(TEXT)) == ours.decode(ours.encode(TEXT))
    assert (theirs.eos_token, theirs.eos_token_id, theirs.bos_token) == (END_OF_TEXT, 0, begins)
    assert (theirs.model_max_length, len(theirs), theirs.clean_up_tokenization_spaces) == (77, ours.vocab_size, False)
    assert theirs.decode(ours.encode("a .b" + END_OF_TEXT), skip_special_tokens=True) == "a .b"
    assert read_tokenizer(tmp_path).sha256() == ours.sha256()
    theirs.save_pretrained(tmp_path / "again")
    assert read_tokenizer(tmp_path / "again").sha256() == ours.sha256()


def test_a_qwen2_tokenizer_is_loaded_by_its_own_class(transformers: Any, trained: tuple, tmp_path: Path) -> None:
    """Which transformers takes for this kind of model, whatever the folder says."""
    vocab = dict(enumerate([*trained[0].values(), END_OF_TEXT.encode()]))
    ours = Tokenizer(vocab, trained[1], [END_OF_TEXT], pattern="qwen2", normalization="NFC")
    write_tokenizer(ours, tmp_path, context_length=77)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT)


def test_other_content_is_not_overwritten(trained: tuple, tmp_path: Path) -> None:
    ours = tokenizer_of(trained)
    write_tokenizer(ours, tmp_path, context_length=77)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_tokenizer(ours, tmp_path, context_length=77)
    with pytest.raises(InteropError, match=r"tokenizer\.json: already exists, with other content"):
        write_tokenizer(tokenizer_of(trained, pattern="o200k"), tmp_path, context_length=77)
    with pytest.raises(InteropError, match=r"tokenizer_config\.json: already exists"):
        write_tokenizer(ours, tmp_path, context_length=78)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_special_token_that_reads_like_another_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match="'Ġa' reads like an ordinary token"):
        write_tokenizer(Tokenizer(BYTES | {256: b" a"}, [(b" ", b"a")], ["Ġa"]), tmp_path / "x", context_length=8)
    assert not (tmp_path / "x").exists()


# In


def llama3(folder: Path, merges: list[tuple[str, str]], letters: list[str]) -> tokenizers.Tokenizer:
    """A folder as Llama 3's: every way to make a token is a merge, whole words, special tokens at the end, BOS."""
    merges = [*merges, ("t", "e"), ("e", "r"), ("te", "r"), ("a", "t"), ("h", "a"), ("h", "at")]
    tokens = [*letters, *dict.fromkeys(left + right for left, right in merges)]
    ways = [
        (token[:at], token[at:])
        for token in tokens
        for at in range(1, len(token))
        if token[:at] in set(tokens) and token[at:] in set(tokens)
    ]
    assert len(ways) > len(tokens) - len(letters)
    model = models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=ways, ignore_merges=True)
    theirs = tokenizers.Tokenizer(model)
    theirs.pre_tokenizer = steps.Sequence(
        [steps.Split(Regex(LLAMA3), "isolated"), steps.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    begin = theirs.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="$A $B", special_tokens=[("<|begin_of_text|>", begin)]
    )
    theirs.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    theirs.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("\n\n\n", normalized=False)])
    theirs.save(str(folder / "tokenizer.json"))
    return theirs


def test_a_folder_like_llama_3s_is_read(trained: tuple, tmp_path: Path) -> None:
    written = tmp_path / "ours"
    write_tokenizer(Tokenizer(*trained), written, context_length=8)
    model = json.loads((written / "tokenizer.json").read_bytes())["model"]
    letters = [text for text, token_id in model["vocab"].items() if token_id < 256]
    theirs = llama3(tmp_path, [tuple(merge.split(" ")) for merge in model["merges"]], letters)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end_of_text|>"}}))
    ours = read_tokenizer(tmp_path)
    text = TEXT + "<tool>a<|end_of_text|>\n\n\n\n"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert [ours.bos_token_id, *ours.encode(text)] == theirs.encode(text).ids
    assert ours.eos_token_id == theirs.token_to_id("<|end_of_text|>")
    assert (ours.settings.pattern, ours.settings.whole_words) == ("llama3", True)
    assert sorted(ours.special_tokens) == ["\n\n\n", "<tool>", "<|begin_of_text|>", "<|end_of_text|>"]


def test_tokens_that_only_the_configuration_adds_are_read(
    transformers: Any, valid: dict, read: Read, tmp_path: Path
) -> None:
    late = {"256": {"content": END_OF_TEXT, "normalized": False}, "260": {"content": "<late>", "normalized": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": late}))
    assert read(valid).special_tokens == {END_OF_TEXT: 256, "<a>": 257, "<late>": 260}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("b<late>")["input_ids"][-1] == 260
    for damaged in ([], {"x": {}}, {"1": 2}, {"261": {"content": "<b>"}}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": damaged}))
        with pytest.raises(InteropError):
            read_tokenizer(tmp_path)


def test_what_transformers_saves_is_read(transformers: Any, trained: tuple, tmp_path: Path) -> None:
    written = tmp_path / "ours"
    write_tokenizer(tokenizer_of(trained), written, context_length=8)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(written / "tokenizer.json"), eos_token="<|begin|>", bos_token=END_OF_TEXT
    )
    theirs.save_pretrained(tmp_path)
    assert (read_tokenizer(tmp_path).eos_token_id, read_tokenizer(tmp_path).bos_token_id) == (1, None)
    theirs.add_bos_token = True
    theirs.save_pretrained(tmp_path / "adds")
    assert read_tokenizer(tmp_path / "adds").bos_token_id == 0
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "adds")("a")["input_ids"][0] == 0


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({}, 256),
        ({"tokenizer_config.json": {"eos_token": "<a>"}, "generation_config.json": {"eos_token_id": 256}}, 257),
        ({"special_tokens_map.json": {"eos_token": "<a>"}}, 257),
        ({"tokenizer_config.json": {"eos_token": None}, "generation_config.json": {"eos_token_id": [257, 256]}}, 257),
        ({"config.json": {"eos_token_id": 257}}, 257),
    ],
)
def test_the_end_of_text_is_what_the_folder_says(
    valid: dict, read: Read, tmp_path: Path, files: dict, eos: int
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read(valid).eos_token_id == eos


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a `tokenizer.json` with everything in it, to be spoilt."""
    folder = tmp_path_factory.mktemp("valid")
    merges = [(b"a", b"b"), (b"ab", b"c")]
    tokens = [*BYTES.values(), END_OF_TEXT.encode(), b"<a>", b"ab", b"abc"]
    special = [END_OF_TEXT, "<a>"]
    ours = Tokenizer(
        dict(enumerate(tokens)), merges, special, pattern="qwen2", normalization="NFC", beginning_of_text="<a>"
    )
    write_tokenizer(ours, folder, context_length=8)
    return json.loads((folder / "tokenizer.json").read_bytes())


CASES = Path(__file__).parent / "data" / "tokenizers"
READ = (
    "added_dup added_is_merge_product_tab added_one_byte added_ordinary bos_eos_template command_r decoder_sequence "
    "dropout_zero id_gap iso_inverted minimax nested_sequence nfc_space_added norm_seq_nfc order_dead_way "
    "order_live_way raw_vocab_no_added roberta_nomask starcoder tekken truncation unk_token"
).split()
REFUSED = {
    "bloom": r"its pre-tokenization pattern is not supported: ' \?\[\^",
    "bytelevel_after_split_space": "add_prefix_space",
    "falcon": "its pre-tokenizer, Punctuation and ByteLevel and Digits and Split, splits further after ByteLevel",
    "norm_nfkc": "its normalizer is NFKC",
    "opt_prefix_space": "add_prefix_space",
    "phi4_rstrip": r"'<\|im_start\|>' is matched with lstrip",
    "roberta": "'<mask>' is matched with lstrip",
}


@pytest.mark.parametrize("name", READ)
def test_what_families_write_is_read_as_by_tokenizers(name: str) -> None:
    ours, theirs = read_tokenizer(CASES / name), tokenizers.Tokenizer.from_file(str(CASES / name / "tokenizer.json"))
    added = sorted(token.content for token in theirs.get_added_tokens_decoder().values())
    parts = [*added, *TEXT, *"abcdx \t\n\u0301", "ab", "  ", "\u0338"]

    @settings(max_examples=100)
    @given(
        st.lists(
            st.sampled_from(parts) | st.sampled_from(sorted(theirs.get_vocab())) | st.characters(codec="utf-8")
        ).map("".join)
    )
    @example(TEXT)
    @example("ab".join(["", *added, ""]))
    @example("a   b\u0338  \u0338")
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        before = theirs.encode(text).ids[: len(ids) + 1]
        assert ours.bos_token_id is None or before == [ours.bos_token_id, *ids]

    check()


@pytest.mark.parametrize("name", REFUSED)
def test_what_families_write_and_is_not_supported_is_named(name: str) -> None:
    with pytest.raises(InteropError, match=REFUSED[name]):
        read_tokenizer(CASES / name)


def test_every_case_is_tested() -> None:
    assert sorted(path.name for path in CASES.iterdir()) == sorted([*READ, *REFUSED, "decoder_null"])


def test_without_a_decoder_the_ids_are_the_same_and_text_is_decoded_to() -> None:
    folder = CASES / "decoder_null"
    with pytest.warns(UserWarning, match="has no decoder, so tokenizers shows tokens in GPT-2's byte encoding"):
        ours = read_tokenizer(folder)
    ids = ours.encode("ab é abc")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids == theirs.encode("ab é abc", add_special_tokens=False).ids
    assert theirs.decode(ids) == "ab Ġ Ã © Ġ ab c"
    assert ours.decode(ids) == "ab é abc"


def spoilt(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a copy with another value at a place like "model/type"; "…" as the value removes it."""
    content = copy.deepcopy(content)
    *path, last = (int(part) if part.isdigit() else part for part in place.split("/"))
    target: Any = content
    for part in path:
        target = target[part]
    if value == "…":
        del target[last]
    else:
        target[last] = value
    return content


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model/type", "Unigram", "its model is Unigram; only byte-level BPE"),
        ("model/type", "WordPiece", "its model is WordPiece"),
        ("model/byte_fallback", True, "SentencePiece's BPE"),
        ("model/dropout", 0.1, "dropout 0.1"),
        ("model/end_of_word_suffix", "</w>", "end_of_word_suffix '</w>'"),
        ("model/continuing_subword_prefix", "##", "continuing_subword_prefix '##'"),
        ("model/ignore_merges", 1, "neither true nor false"),
        ("model/merges", "…", "no list of merges"),
        ("model/merges/0", ["a", "b", "c"], "is no pair of tokens"),
        ("model/merges/0", "a  b", "is no pair of tokens"),
        ("model/merges/0", "▁ b", "has '▁', which stands for no byte"),
        ("model/merges/0", "a c", "needs b'ac', which the vocabulary lacks"),
        ("model/merges/0", "a b ", "is no pair of tokens"),
        ("model/vocab/a", 98, "'b' and another have the id 98"),
        ("model/vocab/a", True, "has the id True"),
        ("model/vocab/a", 10**9, "has the id 1000000000; ids are 0 to 2,097,151"),
        ("model/vocab/a", -1, "has the id -1"),
        ("model/vocab/a", "…", "needs b'a', which the vocabulary lacks"),
        ("pre_tokenizer", None, "its pre-tokenizer is absent"),
        (
            "pre_tokenizer",
            {"type": "Metaspace", "replacement": "▁"},
            "its pre-tokenizer is SentencePiece's, Metaspace; only byte-level BPE",
        ),
        ("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}, "adds a space before texts"),
        ("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}, "is not supported"),
        ("pre_tokenizer/pretokenizers/0/pattern/Regex", r"\w+", r"is not supported: '\\\\w\+'"),
        ("pre_tokenizer/pretokenizers/0/pattern", {"String": " "}, "is not supported"),
        ("pre_tokenizer/pretokenizers/0/behavior", "Removed", "is not supported"),
        ("normalizer", {"type": "Lowercase"}, "its normalizer is Lowercase"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}, "only NFC is done"),
        ("decoder", {"type": "Metaspace"}, "its decoder is not ByteLevel"),
        ("added_tokens/0/lstrip", True, "matched with lstrip"),
        ("added_tokens/0/rstrip", True, "matched with rstrip"),
        ("added_tokens/0/single_word", True, "matched with single_word"),
        ("added_tokens/0", {"id": 256, "content": "e<", "normalized": True}, "is matched in normalized text"),
        ("added_tokens/0/id", 3, "or it has two"),
        ("added_tokens/0/content", "x" * 2000, "is longer than 1,000 characters"),
        ("added_tokens/0/content", "a", "and another have the id|or it has two"),
        ("added_tokens/0/content", "Ġ", "or it has two"),
        ("added_tokens/1/content", END_OF_TEXT, "is listed twice, in two ways"),
        ("added_tokens", {}, "its added_tokens are no list"),
        ("post_processor", {"type": "BertProcessing"}, "its post-processor is BertProcessing"),
        ("post_processor", {"type": "RobertaProcessing", "cls": ["<a>", 1]}, "cls is .*, which is no added token"),
        ("post_processor/single/0/SpecialToken/id", "<b>", "'<b>' around texts, which is no added token"),
        ("post_processor/special_tokens/<a>/ids", [1], "is no added token of that id"),
        ("post_processor/single", [], "more around a text than"),
    ],
)
def test_what_cannot_be_done_is_refused(
    valid: dict, read: Read, place: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InteropError, match=message) as caught:
        read(spoilt(valid, place, value))
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(caught.value)


def test_added_tokens_that_overlap_are_refused_if_they_are_looked_for_in_turn(valid: dict, read: Read) -> None:
    plain = spoilt(valid, "normalizer", None)
    turned = spoilt(spoilt(plain, "added_tokens/1/normalized", True), "added_tokens/0/content", END_OF_TEXT)
    assert read(turned).encode("<a>") == [257]
    both = spoilt(plain, "added_tokens/2", {}) if len(plain["added_tokens"]) > 2 else copy.deepcopy(plain)
    both["added_tokens"].append({"id": 260, "content": ">b", "normalized": True})
    with pytest.raises(InteropError, match="overlap, and only one of them is normalized"):
        read(both)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 10**5, '{"model": ' * 10**5, "\xff", '{"a": 1e', "9" * 5000])
def test_files_that_are_no_objects_are_refused(valid: dict, read: Read, tmp_path: Path, name: str, text: str) -> None:
    content = {**valid, "post_processor": None}
    read(content)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InteropError, match=name):
        read_tokenizer(tmp_path)


def test_absent_sentencepiece_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match=r"tokenizer\.json: cannot be read"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(InteropError, match="has a SentencePiece model only"):
        read_tokenizer(tmp_path)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(InteropError, match="has more than"):
        read_tokenizer(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text("ab Ġ▁é\ud800<>|", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "Regex", "x"]), inner),
    max_leaves=4,
)


@st.composite
def damage(draw: st.DrawFn, content: Any) -> Any:
    """Draw a copy of JSON in which one thing, anywhere, is another, or absent."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 9)) == 0:
        return draw(values)
    content = copy.copy(content)
    key: Any = draw(st.sampled_from(sorted(content)) if isinstance(content, dict) else st.integers(0, len(content) - 1))
    if draw(st.integers(0, 4)) == 0:
        del content[key]
    else:
        content[key] = draw(damage(content[key]))
    return content


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_of_a_damaged_file_only_our_error_comes_out(valid: dict, tmp_path: Path, data: st.DataObject) -> None:
    configs = {
        "tokenizer.json": valid,
        "tokenizer_config.json": {"eos_token": {"content": "<a>"}, "bos_token": "<a>", "add_bos_token": True},
        "generation_config.json": {"eos_token_id": [256, 257]},
    }
    spoilt_file = data.draw(st.sampled_from(sorted(configs)))
    for name, content in configs.items():
        content = data.draw(damage(content)) if name == spoilt_file else content
        written = json.dumps(content).encode()
        if name == spoilt_file and data.draw(st.integers(0, 3)) == 0:
            at = data.draw(st.integers(0, len(written)))
            written = written[:at] + data.draw(st.binary(max_size=3)) + written[at + data.draw(st.integers(0, 5)) :]
        (tmp_path / name).write_bytes(written)
    try:
        tokenizer = read_tokenizer(tmp_path)
    except InteropError as error:
        assert "\n" not in str(error)
    else:
        assert tokenizer.decode(tokenizer.encode("abc 12é<a>")) == unicodedata.normalize("NFC", "abc 12é<a>")


# Vocabularies and merges as published files have them


LETTERS = gpt2_bytes_to_unicode()


def published(
    merges: list[str], added: dict[str, int], entries: dict[str, int] | None = None, missing: str = "", **model: Any
) -> dict[str, Any]:
    """The content of a file with these merges, the tokens that they make, and added tokens."""
    vocab = {letter: byte for byte, letter in LETTERS.items() if letter not in missing}
    for merge in sorted(merges, key=len):
        vocab.setdefault(merge.replace(" ", ""), len(vocab) + len(missing))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token_id, "content": text, **flags} for text, token_id in added.items()],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL | {"trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab | (entries or {}), "merges": merges, **model},
    }


PUBLISHED = {
    "a way to a token that never applies": (
        published(["ab c", "a b", "a bc", "abc d"], {END_OF_TEXT: 260}, {"bc": 259}),
        "abcd abc ab",
        [258, 32, 257, 32, 256],
    ),
    "a part that a later merge makes": (
        published(["ab c", "a b"], {END_OF_TEXT: 258}),
        "abc ab",
        [257, 32, 256],
    ),
    "a gap in the ids": (
        published(["a b"], {END_OF_TEXT: 257, "<|endofprompt|>": 276}, {END_OF_TEXT: 257, "<|endofprompt|>": 276}),
        "ab<|endofprompt|><|endoftext|>",
        [256, 276, 257],
    ),
    "an added token with the bytes of a merged one": (
        published(["ĉ ĉ"], {"<EOS>": 257, "\t\t": 258}),
        "a\t\tb",
        [97, 258, 98],
    ),
    "an added token that is an ordinary one": (
        published(["a b"], {"ab": 256, "<EOS>": 257}),
        "cab<EOS>",
        [99, 256, 257],
    ),
    "an added token of one byte": (published(["a b"], {"\n": 257}), "ab\nc", [256, 257, 99]),
    "an added token that is listed twice": (
        published(["a b"], {"<EOS>": 257}) | {"added_tokens": published(["a b"], {"<x>": 257})["added_tokens"] * 2},
        "ab<x>",
        [256, 257],
    ),
    "texts in the vocabulary that stand for no bytes": (
        published(["a b"], {"<EOS>": 259}, {"€x": 257, "a b": 258}),
        "€x a b",
        [226, 130, 172, 120, 32, 97, 32, 98],
    ),
    "missing bytes": (
        published(["a b"], {"<EOS>": 257}, {"<EOS>": 257}, missing="x"),
        "axb x<EOS>",
        [256, 32, 257],
    ),
    "missing bytes and an unknown token": (
        published(["a b"], {"[UNK]": 300}, {"[UNK]": 300}, missing="x", unk_token="[UNK]"),
        "axxb[UNK]",
        [97, 300, 300, 98, 300],
    ),
    "an unknown token that is never needed": (
        published(["a b"], {"[UNK]": 257}, unk_token="[UNK]", fuse_unk=True),
        "[UNK]ab",
        [257, 256],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("backend", ["plain", "compiled"])
def test_vocabularies_as_in_published_files(
    name: str, backend: str, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "compiled":
        monkeypatch.setattr(layers, "SHORT", -1)
        monkeypatch.setattr(layers, "TEXT", layers.Threshold(0, 0))
    content, text, expected = PUBLISHED[name]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert theirs.encode(text, add_special_tokens=False).ids == expected
    ours = read(content)
    ours.save(tmp_path / "saved")
    for tokenizer in (ours, Tokenizer.load(tmp_path / "saved")):
        assert tokenizer.encode(text) == expected
        for token_id in tokenizer.vocab:
            assert tokenizer.decode([token_id]) == theirs.decode([token_id], skip_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("order_dead_way", "abcd abc ab", [258, 32, 259, 32, 256]),
        ("order_live_way", "abc ab", [256, 32, 257]),
        ("id_gap", "ab<|endofprompt|><|endoftext|>", [256, 276, 257]),
        ("added_is_merge_product_tab", "a\t\tb", [97, 259, 98]),
        ("nfc_space_added", "a   b", [97, 258, 32, 98]),
    ],
)
def test_files_that_were_once_refused_have_these_ids(name: str, text: str, expected: list[int]) -> None:
    assert read_tokenizer(CASES / name).encode(text) == expected


def test_an_added_token_that_is_written_like_another_byte_is_refused(read: Read) -> None:
    with pytest.raises(InteropError, match=r"'é' is also how another token is written, b'\\xe9'"):
        read(published(["a b"], {"é": 233}))


def test_unknown_tokens_that_are_fused_are_refused_where_bytes_are_missing(read: Read) -> None:
    content = published(["a b"], {"[UNK]": 300}, {"[UNK]": 300}, missing="x", unk_token="[UNK]", fuse_unk=True)
    with pytest.raises(InteropError, match="makes one unknown token of several bytes"):
        read(content)
