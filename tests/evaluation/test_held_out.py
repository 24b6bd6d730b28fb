"""Held-out loss and bits per byte: what is scored, what is seen, what is counted."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from databuilder import build_dataset
from transformerlm.evaluation import Evaluator, HeldOut
from transformerlm.hparams import EvaluationHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.models import TransformerLM
from transformerlm.models.attention import document_mask
from transformerlm.token_files.index import documents_path, read_info, sidecar_path
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import ConfigError, DataError

CONTEXT = 12
TEXTS = ["The cat sat near the house.", "A big red dog", "naïve café 你好 went home", "s"]

MakeModel = Callable[..., TransformerLM]


@pytest.fixture
def data(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """`TEXTS` as a token file in their order."""
    (tmp_path / "texts.txt").write_text(f"\n{END_OF_TEXT}\n".join(TEXTS), encoding="utf-8")
    build_dataset([tmp_path / "texts.txt"], tokenizer, tmp_path / "texts.dat", shuffle=False)
    return tmp_path / "texts.dat"


def evaluator(model: TransformerLM, tokenizer: Tokenizer, *, masks: bool = False, **settings: object) -> Evaluator:
    hparams = EvaluationHparams(**settings)  # type: ignore[arg-type]
    return Evaluator(Predictor(model, tokenizer), hparams, mask_documents=masks)


def oracle(model: TransformerLM, documents: Sequence[Sequence[int]]) -> list[float]:
    """Return the nats of each id after the end-of-text id and as much of its document as the model sees."""
    nats = []
    for document in documents:
        ids = [319, *document]
        for place in range(1, len(ids)):
            before = torch.tensor([ids[max(0, place - model.context_length) : place]])
            with torch.inference_mode():
                nats.append(-model(before)[0, -1].log_softmax(-1)[ids[place]].item())
    return nats


def with_ends(tokenizer: Tokenizer) -> list[list[int]]:
    return [[*tokenizer.encode(text), 319] for text in TEXTS]


def close(one: HeldOut, other: HeldOut, rel: float = 1e-6) -> bool:
    """Whether two results are of the same tokens, and as good."""
    counts = [(r.num_tokens, r.num_ends, r.num_bytes, r.num_documents) for r in (one, other)]
    return counts[0] == counts[1] and one.nats == pytest.approx(other.nats, rel=rel)


def test_every_token_by_a_forward_pass_of_its_own(make_model: MakeModel, tokenizer: Tokenizer, data: Path) -> None:
    model = make_model()
    found = evaluator(model, tokenizer, stride=1).token_file(data)
    documents = with_ends(tokenizer)
    nats = oracle(model, documents)
    ends = np.cumsum([len(document) for document in documents]) - 1
    num_bytes = sum(len(text.encode("utf-8")) for text in TEXTS)
    assert found.nats == pytest.approx(sum(nats), rel=1e-5)
    assert found.end_nats == pytest.approx(sum(nats[end] for end in ends), rel=1e-5)
    assert (found.num_tokens, found.num_ends, found.num_documents) == (len(nats), 4, 4)
    assert found.num_bytes == num_bytes
    assert found.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / num_bytes, rel=1e-5)
    without_ends = sum(nats) - sum(nats[end] for end in ends)
    assert found.text_bits_per_byte == pytest.approx(without_ends / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("windows", ["documents", "stream"])
@pytest.mark.parametrize("stride", [None, 1, 5, CONTEXT])
def test_the_batch_size_changes_nothing(
    windows: str, stride: int | None, make_model: MakeModel, tokenizer: Tokenizer, data: Path
) -> None:
    results = [
        evaluator(make_model(), tokenizer, windows=windows, stride=stride, batch_size=size).token_file(data)
        for size in (1, 16)
    ]
    assert close(*results)
    assert results[0].num_windows == results[1].num_windows


@pytest.mark.parametrize("windows", ["documents", "stream"])
def test_a_model_that_sees_one_token_has_the_same_loss_for_all_strides(
    windows: str, forgetful: TransformerLM, make_model: MakeModel, tokenizer: Tokenizer, data: Path
) -> None:
    strides = (1, 3, 6, 11, CONTEXT)
    found = [evaluator(forgetful, tokenizer, windows=windows, stride=stride).token_file(data) for stride in strides]
    assert all(close(one, found[0]) for one in found)
    other = [evaluator(make_model(), tokenizer, windows=windows, stride=stride).token_file(data) for stride in strides]
    assert not close(other[0], other[-1], rel=1e-3)  # while one that sees more tells strides apart


def test_a_stream_goes_over_the_ends_of_documents(make_model: MakeModel, tokenizer: Tokenizer, data: Path) -> None:
    model = make_model()
    found = evaluator(model, tokenizer, windows="stream", stride=1).token_file(data)
    whole = list(chain.from_iterable(with_ends(tokenizer)))
    assert found.nats == pytest.approx(sum(oracle(model, [whole])), rel=1e-5)
    assert (found.num_tokens, found.num_ends, found.num_documents) == (len(whole), 4, 4)


@pytest.mark.parametrize("windows", ["documents", "stream"])
def test_texts_are_scored_as_the_token_file_made_of_them(
    windows: str, make_model: MakeModel, tokenizer: Tokenizer, data: Path
) -> None:
    one = evaluator(make_model(), tokenizer, windows=windows)
    of_file = one.token_file(data)
    assert one.texts([*TEXTS, "", b""]) == of_file
    assert one.texts(text.encode("utf-8") for text in TEXTS) == of_file


def test_a_text_cannot_forge_a_special_token(make_model: MakeModel, tokenizer: Tokenizer) -> None:
    found = evaluator(make_model(), tokenizer).texts([f"a{END_OF_TEXT}b"])
    assert (found.num_ends, found.num_documents, found.num_bytes) == (1, 1, 15)
    assert found.num_tokens > 4


@pytest.mark.parametrize("vocab_size", [320, 400])
def test_a_model_that_knows_nothing_has_the_bits_of_its_vocabulary(
    vocab_size: int, uniform: Callable[[int], TransformerLM], tokenizer: Tokenizer, data: Path
) -> None:
    found = evaluator(uniform(vocab_size), tokenizer).token_file(data)
    tokens, num_bytes = sum(map(len, with_ends(tokenizer))), sum(len(text.encode()) for text in TEXTS)
    assert found.loss == pytest.approx(math.log(vocab_size), rel=1e-6)
    assert found.perplexity == pytest.approx(vocab_size, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(tokens * math.log2(vocab_size) / num_bytes, rel=1e-6)


def test_two_tokenizers_over_the_same_bytes(
    uniform: Callable[[int], TransformerLM], tokenizer: Tokenizer, byte_tokenizer: Tokenizer
) -> None:
    merged = evaluator(uniform(320), tokenizer).texts(TEXTS)
    plain = evaluator(uniform(257), byte_tokenizer).texts(TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert merged.num_bytes == plain.num_bytes == num_bytes
    assert plain.num_tokens == num_bytes + len(TEXTS) > merged.num_tokens
    assert plain.text_bits_per_byte == pytest.approx(math.log2(257), rel=1e-6)
    text_tokens = merged.num_tokens - len(TEXTS)
    assert merged.text_bits_per_byte == pytest.approx(text_tokens * math.log2(320) / num_bytes, rel=1e-6)


def test_shards_are_one_text(make_model: MakeModel, tokenizer: Tokenizer, workspace: Path, sharded: Path) -> None:
    one = evaluator(make_model(), tokenizer, batch_size=64)
    assert one.token_file(sharded) == one.token_file(workspace / "train.dat")


def test_a_model_trained_with_masks_sees_no_other_document(
    make_model: MakeModel, tokenizer: Tokenizer, data: Path
) -> None:
    model = make_model(context_length=128)  # all of the stream is one window

    def masked(ids: list[int]) -> float:
        inputs = torch.tensor([[319, *ids[:-1]]])
        logits = model(inputs, mask=document_mask(inputs, 319))[0]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()

    documents = with_ends(tokenizer)
    stream = evaluator(model, tokenizer, windows="stream", stride=128, masks=True).token_file(data)
    assert stream.num_windows == 1
    assert stream.nats == pytest.approx(masked(list(chain.from_iterable(documents))), rel=1e-5)
    alone = evaluator(model, tokenizer, masks=True).token_file(data)
    assert alone.nats == pytest.approx(sum(map(masked, documents)), rel=1e-5)
    for one, windows in ((stream, "stream"), (alone, "documents")):
        assert not close(one, evaluator(model, tokenizer, windows=windows, stride=128).token_file(data), rel=1e-3)


def test_a_beginning_of_text_comes_before_documents(make_model: MakeModel, tokenizer: Tokenizer) -> None:
    model = make_model(321)
    begun = Tokenizer(tokenizer.vocab, tokenizer.merges, [END_OF_TEXT, "<|begin|>"], beginning_of_text="<|begin|>")
    found = evaluator(model, begun, stride=1).texts(TEXTS[:1])
    ids = begun.encode(TEXTS[0])
    logits = model(torch.tensor([[320, *ids]]))[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([*ids, 319]), reduction="sum")
    assert len(ids) < CONTEXT
    assert found.nats == pytest.approx(expected.item(), rel=1e-5)


def test_without_any_token_to_begin_with_only_the_stream_is_left(make_model: MakeModel) -> None:
    bare = Tokenizer({number: bytes([number]) for number in range(256)}, [], [])
    model = make_model(256)
    with pytest.raises(ConfigError, match=r"no beginning-of-text or end-of-text token.*windows to stream"):
        evaluator(model, bare).texts(["ab"])
    found = evaluator(model, bare, windows="stream").texts(["ab"])
    logits = model(torch.tensor([[97]]))[0, 0]
    assert found.nats == pytest.approx(math.log(256) - logits.log_softmax(-1)[98].item(), rel=1e-5)
    assert (found.num_tokens, found.num_ends, found.end_nats) == (2, 0, 0)


def test_progress_is_told(make_model: MakeModel, tokenizer: Tokenizer, data: Path) -> None:
    told: list[int] = []
    found = evaluator(make_model(), tokenizer).token_file(data, told.append)
    assert told == sorted(told)
    assert told[-1] == found.num_tokens


def test_a_shorter_context_may_be_asked_for(make_model: MakeModel, tokenizer: Tokenizer, data: Path) -> None:
    long, short = make_model(), make_model(context_length=6)
    assert close(
        evaluator(long, tokenizer, context_length=6, stride=2).token_file(data),
        evaluator(short, tokenizer, stride=2).token_file(data),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 13}, "evaluation.context_length: must be at most 12, the model's context .got 13"),
        ({"stride": 13}, "evaluation.stride: must be at most 12, the context.*got 13"),
    ],
)
def test_windows_longer_than_the_model_are_refused(
    settings: dict[str, int], message: str, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluator(make_model(), tokenizer, **settings)


def test_data_that_does_not_fit_is_refused(
    make_model: MakeModel, tokenizer: Tokenizer, byte_tokenizer: Tokenizer, data: Path
) -> None:
    one = evaluator(make_model(), tokenizer)
    with pytest.raises(DataError, match=r"texts.dat: was made by another tokenizer than the checkpoint's"):
        evaluator(make_model(), byte_tokenizer).token_file(data)
    with pytest.raises(DataError, match="there is no text to evaluate on"):
        one.texts(["", ""])
    with pytest.raises(DataError, match=r"there is no such token file"):
        one.token_file(data.with_name("other.dat"))
    ids = data.read_bytes()
    data.write_bytes(b"xy" + ids[2:])
    with pytest.raises(DataError, match=r"texts.dat: its content changed"):
        one.token_file(data)


def test_an_empty_token_file_is_refused(make_model: MakeModel, tokenizer: Tokenizer, data: Path) -> None:
    sidecar = sidecar_path(data)
    info = json.loads(sidecar.read_text(encoding="utf-8"))
    sidecar.write_text(json.dumps(info | {"num_text_bytes": 0}), encoding="utf-8")
    with pytest.raises(DataError, match=r"texts.dat: holds no text to evaluate on"):
        evaluator(make_model(), tokenizer).token_file(data)


@pytest.mark.parametrize(
    ("begins", "message"),
    [([0, 5, 5, 9], "its list of documents is not in order"), ([1, 5, 7, 9], "its list of documents holds .* of")],
)
def test_a_list_of_documents_that_leaves_tokens_out_is_refused(
    begins: list[int], message: str, make_model: MakeModel, tokenizer: Tokenizer, data: Path
) -> None:
    listed = np.array(begins, dtype="<u8").tobytes()
    documents_path(data).write_bytes(listed)
    info = read_info(data).model_dump()
    info["shards"][0]["documents_sha256"] = hashlib.sha256(listed).hexdigest()
    sidecar_path(data).write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        evaluator(make_model(), tokenizer).token_file(data)
