"""From a checkpoint folder to text, whole or piece by piece."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from transformerlm.fast.apply import use_fused_kernels
from transformerlm.hparams import ModelHparams, SamplingHparams
from transformerlm.inference import Engine, generate
from transformerlm.inference.predictor import Completion, Predictor
from transformerlm.models.build import build_model
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.training import Checkpoint, CheckpointStore
from transformerlm.utils.errors import CheckpointError, ConfigError

GREEDY = SamplingHparams(temperature=0.0, max_new_tokens=12)
PROMPTS = ["The cat", "A big red dog went over the hill", "s"]


@pytest.fixture(scope="module")
def trained(run_folder: Path) -> Predictor:
    return Predictor.from_checkpoint(run_folder, device="cpu")


def scripted(monkeypatch: pytest.MonkeyPatch, *rows: Sequence[int]) -> None:
    """Let the model say these ids, row by row, whatever it is asked."""

    def draw(engine: Any, _logits: Any) -> list[int]:
        return [
            0 if request is None else rows[row][len(request.token_ids)] for row, request in enumerate(engine._slots)
        ]

    monkeypatch.setattr(Engine, "_draw", draw)


def streamed(trained: Predictor, prompts: Sequence[str], sampling: SamplingHparams) -> tuple[list[Completion], Any]:
    completions = trained.start(prompts)
    pieces = list(trained.stream(completions, sampling))
    return completions, pieces


def test_greedy_text_is_that_of_the_plain_loop(trained: Predictor) -> None:
    completions = trained.complete(PROMPTS, GREEDY)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = trained.tokenizer.encode(prompt)
        eos = trained.tokenizer.eos_token_id
        expected = generate(trained.model, torch.tensor(ids), 12, temperature=0.0, eos_token_id=eos)[
            len(ids) :
        ].tolist()
        if eos in expected:
            expected = expected[: expected.index(eos) + 1]
        assert completion.prompt == prompt
        assert completion.prompt_ids == ids
        assert completion.token_ids == expected
        assert completion.text == trained.tokenizer.decode([token for token in expected if token != eos])


def test_weights_and_tables_are_those_of_the_checkpoint(trained: Predictor, run_folder: Path) -> None:
    checkpoint = Checkpoint.open(run_folder)
    model = build_model(checkpoint.model_hparams(), seed=1)
    model.load_state_dict(checkpoint.model_state())
    ids = torch.arange(20).unsqueeze(0)
    use_fused_kernels(model)
    assert torch.equal(trained.model(ids), model(ids))
    assert not trained.model.training


def test_sampling_follows_the_seed(trained: Predictor) -> None:
    texts = [
        trained.complete(PROMPTS, SamplingHparams(max_new_tokens=12, temperature=1.0, seed=seed))[1].text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_join_to_the_text(seed: int, trained: Predictor) -> None:
    sampling = SamplingHparams(max_new_tokens=20, temperature=1.5, top_p=1.0, seed=seed, stop=("the", "e\n"))
    completions, pieces = streamed(trained, PROMPTS, sampling)
    for row, completion in enumerate(completions):
        assert "".join(piece.text for piece in pieces if piece.row == row) == completion.text
        assert not any(stop in completion.text for stop in sampling.stop)
    assert all(piece.text for piece in pieces)
    assert [c.text for c in completions] == [c.text for c in trained.complete(PROMPTS, sampling)]


def test_a_full_count_is_a_reason(trained: Predictor) -> None:
    [completion] = trained.complete(["The"], GREEDY)
    assert completion.finish_reason in ("max_new_tokens", "end_of_text")
    assert completion.token_ids is not None
    assert len(completion.token_ids) <= 12


def test_a_full_context_is_a_reason(trained: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained.tokenizer.__class__, "eos_token_id", None)
    short, long = trained.complete(["a", "a cat " * 4], SamplingHparams(temperature=0.0, max_new_tokens=1000))
    for completion in (short, long):
        assert completion.finish_reason == "context_length"
        assert len(completion.prompt_ids) + len(completion.token_ids or []) == 32


def test_end_of_text_ends_one_row_and_is_no_text(trained: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    eos = trained.tokenizer.eos_token_id
    assert eos is not None
    cat, dog = (trained.tokenizer.encode(text) for text in (" cat", " dog"))
    scripted(monkeypatch, [*cat, eos], [*dog, *dog, *dog, *dog])
    sampling = SamplingHparams(max_new_tokens=4 * len(dog))
    first, second = trained.complete(["a", "b"], sampling)
    assert (first.text, first.finish_reason, first.token_ids) == (" cat", "end_of_text", [*cat, eos])
    assert (second.text, second.finish_reason) == (" dog" * 4, "max_new_tokens")


@pytest.mark.parametrize(
    ("said", "stop", "shown", "reason"),
    [
        ("one two three", ("two",), "one ", "stop_string"),
        ("one two three", ("e t", "wo t"), "on", "stop_string"),
        ("one two", ("two three",), "one two", "max_new_tokens"),
        ("one", ("one",), "", "stop_string"),
        ("naïve 你好!", ("好",), "naïve 你", "stop_string"),
    ],
)
def test_stop_strings_may_lie_across_tokens(
    said: str, stop: tuple[str, ...], shown: str, reason: str, trained: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(said.encode("utf-8"))  # every byte a token: a vocabulary begins with the bytes
    assert trained.tokenizer.decode(ids) == said
    scripted(monkeypatch, ids)
    sampling = SamplingHparams(max_new_tokens=len(ids), stop=stop)
    [completion], pieces = streamed(trained, ["x"], sampling)
    assert (completion.text, completion.finish_reason) == (shown, reason)
    assert "".join(piece.text for piece in pieces) == shown


def test_no_piece_ends_within_a_character(trained: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "é你🦊!"
    ids = list(said.encode("utf-8"))
    scripted(monkeypatch, ids)
    _, pieces = streamed(trained, ["x"], SamplingHparams(max_new_tokens=len(ids)))
    assert [piece.text for piece in pieces] == list(said)
    scripted(monkeypatch, ids[:4])
    [completion], pieces = streamed(trained, ["x"], SamplingHparams(max_new_tokens=4))
    assert completion.text == "é\ufffd"  # the count was full within the second character


def test_an_empty_prompt_begins_a_document(trained: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained.encode_prompt("") == trained.encode_prompt(END_OF_TEXT) == [319]
    assert trained.complete([], GREEDY) == []
    monkeypatch.setattr(trained.tokenizer.__class__, "eos_token_id", None)
    with pytest.raises(ConfigError, match="the prompt is empty, and the tokenizer has no end-of-text token"):
        trained.encode_prompt("")


def test_a_prompt_begins_with_the_token_that_begins_texts(trained: Predictor) -> None:
    vocab, merges = trained.tokenizer.vocab, trained.tokenizer.merges
    begins = Predictor(trained.model, Tokenizer(vocab, merges, [END_OF_TEXT], beginning_of_text=END_OF_TEXT))
    assert begins.encode_prompt("") == [319]
    assert begins.encode_prompt("The cat") == [319, *trained.encode_prompt("The cat")]
    with pytest.raises(ConfigError, match="the prompt has 32 tokens"):
        begins.encode_prompt("\x01" * 31)


def test_a_prompt_must_leave_room(trained: Predictor) -> None:
    letters = "\x01" * 31
    assert len(trained.encode_prompt(letters)) == 31
    [completion] = trained.complete([letters], GREEDY)
    assert len(completion.token_ids or []) == 1
    with pytest.raises(ConfigError, match="the prompt has 32 tokens, the model's context 32; shorten"):
        trained.start(["fine", letters + "\x01"])


def test_bfloat16_on_request(run_folder: Path) -> None:
    rounded = Predictor.from_checkpoint(run_folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in rounded.model.parameters()} == {torch.bfloat16}
    assert rounded.complete(["The"], GREEDY)[0].token_ids


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml", "vocab.json", "manifest.json"])
def test_a_damaged_checkpoint_is_refused(name: str, run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(Checkpoint.open(run_folder).path, tmp_path / "step_00000012")
    (folder / name).write_bytes(b"x" + (folder / name).read_bytes()[1:])
    with pytest.raises(CheckpointError, match=name):
        Predictor.from_checkpoint(folder)


@pytest.mark.slow
def test_loading_a_checkpoint_loads_no_compiler(run_folder: Path) -> None:
    code = (
        "import sys, torch; before = set(sys.modules); from transformerlm.inference.predictor import Predictor; "
        f"Predictor.from_checkpoint({str(run_folder)!r}); "
        "print({'torch._dynamo', 'sympy'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "set()\n"


def test_a_missing_checkpoint_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint; make one with transformerlm-train"):
        Predictor.from_checkpoint(tmp_path)


def test_a_checkpoint_without_a_tokenizer_cannot_read_text(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, config_toml="[model]\nvocab_size = 300\n", tokenizer=None)
    store.save(model={}, optimizer={}, state={"step": 1})
    with pytest.raises(CheckpointError, match="holds no tokenizer, so it cannot read or write text"):
        Predictor.from_checkpoint(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    hparams = ModelHparams(vocab_size=319, context_length=8, d_model=8, num_layers=1, num_heads=1, d_ff=8)
    with pytest.raises(CheckpointError, match="the tokenizer has 320 ids, the model only 319"):
        Predictor(build_model(hparams), tokenizer)


def test_ids_beyond_the_tokenizer_are_no_text(tokenizer: Tokenizer) -> None:
    hparams = ModelHparams(vocab_size=4000, context_length=64, d_model=8, num_layers=1, num_heads=1, d_ff=8)
    padded = Predictor(build_model(hparams, seed=0), tokenizer)
    sampling = SamplingHparams(max_new_tokens=50, temperature=1.0, top_p=1.0)
    [completion] = padded.complete(["The"], sampling)
    known = [token for token in completion.token_ids or [] if token < tokenizer.vocab_size]
    assert len(known) < 50
    assert completion.text == tokenizer.decode([token for token in known if token != tokenizer.eos_token_id])


def test_a_stream_that_is_left_gives_its_slots_back(trained: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = trained.new_engine(2)
    monkeypatch.setattr(trained, "new_engine", lambda _size: engine)
    pieces = trained.stream(trained.start(["the", "a"]), SamplingHparams(max_new_tokens=20))
    next(pieces)
    assert engine.has_work
    pieces.close()
    assert not engine.has_work


@pytest.mark.slow
def test_a_compiled_predictor_compiles_once(trained: Predictor) -> None:
    compiled = Predictor(trained.model, trained.tokenizer, compiled=True)
    greedy = SamplingHparams(temperature=0, max_new_tokens=9)
    assert compiled.complete(["the"], greedy)[0].text == trained.complete(["the"], greedy)[0].text
    with torch.compiler.set_stance("fail_on_recompile"):
        assert compiled.complete(["once"], greedy)[0].text == trained.complete(["once"], greedy)[0].text
