"""Evaluate a checkpoint's model on token files, texts and multiple choice."""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import final

import numpy as np

from transformerlm.checkpoint.folder import Checkpoint
from transformerlm.evaluation.choices import MultipleChoice, Question, count_right
from transformerlm.evaluation.held_out import HeldOut, OnScored, Prefixed, Tally, file_documents, rows_of
from transformerlm.evaluation.likelihood import Continuations, continuation_rows, start_id
from transformerlm.evaluation.scorer import Pack, Row, Scorer, share_prefixes
from transformerlm.hparams import EvaluationHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.token_files.index import MAKE_DATA, read_info, verify_data
from transformerlm.token_files.stream import TokenStream
from transformerlm.tokenizer.backend import IdArray
from transformerlm.training.data import Tokens
from transformerlm.utils.errors import ConfigError, DataError, require_list


@final
class Evaluator:
    """A model and its tokenizer, ready to be evaluated."""

    def __init__(
        self, predictor: Predictor, settings: EvaluationHparams | None = None, *, mask_documents: bool = False
    ) -> None:
        """Set `mask_documents` if the model was trained with attention within documents only.

        Raises `ConfigError` if the context or stride of the settings does not fit the model.
        """
        settings = settings or EvaluationHparams()
        self.predictor = predictor
        self.model, self.tokenizer = predictor.model, predictor.tokenizer
        longest = self.model.context_length
        self.context_length = settings.context_length or longest
        if self.context_length > longest:
            raise ConfigError(
                f"evaluation.context_length: must be at most {longest}, the model's context (got {self.context_length})"
            )
        self.stride = settings.stride or max(1, self.context_length // 2)
        if self.stride > self.context_length:
            raise ConfigError(
                f"evaluation.stride: must be at most {self.context_length}, the context, or tokens between windows "
                f"are skipped (got {self.stride})"
            )
        self.windows = settings.windows
        self.batch_size = settings.batch_size
        self.mask_documents = mask_documents

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        settings: EvaluationHparams | None = None,
        *,
        device: str = "auto",
        dtype: str = "float32",
    ) -> "Evaluator":
        """Load a checkpoint folder, or the newest checkpoint of a run folder. Raises the errors of `Predictor`."""
        checkpoint = Checkpoint.open(Path(path))
        predictor = Predictor.from_checkpoint(checkpoint, device=device, dtype=dtype)
        return cls(predictor, settings, mask_documents=_trained_with_masks(checkpoint))

    def token_file(self, path: Path | str, on_scored: OnScored | None = None) -> HeldOut:
        """Evaluate on a whole token file.

        Raises `DataError` if it is damaged, empty or inconsistent, or was made by another tokenizer.
        """
        path = Path(path)
        info = read_info(path)
        if info.tokenizer_sha256 != self.tokenizer.sha256():
            raise DataError(
                f"{path}: was made by another tokenizer than the checkpoint's; make it again with that "
                f"({MAKE_DATA}), or give its text, which is then encoded, as --input.sources"
            )
        if not info.num_tokens or not info.num_text_bytes:
            raise DataError(f"{path}: holds no text to evaluate on")
        verify_data(path, info)
        stream = TokenStream.open(path, info)
        if self.windows == "stream":
            tally = self._score([stream], on_scored)
        else:
            tally = self._score(file_documents(path, info, stream), on_scored)
        if tally.num_tokens != info.num_tokens:
            raise DataError(
                f"{path}: its list of documents holds {tally.num_tokens:,} of {info.num_tokens:,} tokens; make it "
                f"again with {MAKE_DATA}"
            )
        return tally.result(num_bytes=info.num_text_bytes, num_documents=info.num_documents)

    def texts(self, texts: Iterable[str | bytes], on_scored: OnScored | None = None) -> HeldOut:
        """Evaluate on texts, each a document; empty ones are skipped.

        They are encoded as plain text, as in the data builder, and read one at a time; with the windows "stream", the
        ids of all texts are in memory. Raises `DataError` if there is no text.
        """
        require_list("texts", texts)
        counts = {"bytes": 0, "documents": 0}

        def documents() -> Iterator[Tokens]:
            for text in texts:
                if text:
                    counts["documents"] += 1
                    counts["bytes"] += len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
                    yield self._document(text)

        if self.windows == "stream":
            arrays = [document[:] for document in documents()]
            tally = self._score([np.concatenate(arrays)] if arrays else [], on_scored)
        else:
            tally = self._score(documents(), on_scored)
        if not counts["documents"]:
            raise DataError("there is no text to evaluate on")
        return tally.result(num_bytes=counts["bytes"], num_documents=counts["documents"])

    def log_likelihoods(self, texts: Sequence[Sequence[Row]]) -> list[float]:
        """Return the log-likelihood (natural logarithm) of each text, given as its windows; 0 without windows."""
        packs = (Pack([row], owner=number) for number, rows in enumerate(texts) for row in rows)
        found = [0.0] * len(texts)
        for pack, [scored] in self._scorer(mask=True).score(packs):
            found[pack.owner] -= float(scored.nats.sum())
        return found

    def continuations(
        self, pairs: Sequence[tuple[str, str]], on_scored: OnScored | None = None
    ) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) the continuation's log-likelihood, and whether it is greedy.

        It is greedy if each of its tokens is the most likely one. Adjacent pairs with the same context share its
        computation. The beginning of a context that is too long is cut off. Raises the errors of `continuation_rows`.
        """
        packs = (
            pack
            for _, neighbours in groupby(pairs, key=itemgetter(0))
            for pack in self._share([self._continue(context, [text]).rows[0] for context, text in neighbours])
        )
        found: list[tuple[float, bool]] = []
        for _, rows in self._scorer(find_greedy=True).score(packs):
            found += [(-float(row.nats.sum()), bool(row.is_greedy.all())) for row in rows]
            if on_scored is not None:
                on_scored(len(found))
        return found

    def choices(self, questions: Sequence[Question], on_scored: OnScored | None = None) -> MultipleChoice:
        """Count how often the correct choice is the most likely one.

        `on_scored` is called with the number of questions done. Raises `DataError` if a choice is longer than the
        context, with the place of the question, and if there are no questions.
        """
        dropped = [0] * len(questions)
        likelihoods: list[list[float]] = [[] for _ in questions]

        def packs() -> Iterator[Pack]:
            for number, question in enumerate(questions):
                try:
                    rows, dropped[number] = self._continue(question.context, question.choices)
                except (ConfigError, DataError) as error:
                    raise type(error)(f"{question.where}: {error}") from None
                yield from self._share(rows, owner=number)

        for pack, rows in self._scorer().score(packs()):
            likelihoods[pack.owner] += [-float(row.nats.sum()) for row in rows]
            if on_scored is not None:
                on_scored(pack.owner)
        return count_right(zip(questions, likelihoods, dropped, strict=True))

    def _scorer(self, *, mask: bool = False, find_greedy: bool = False) -> Scorer:
        mask_after = self.tokenizer.eos_token_id if mask and self.mask_documents else None
        return Scorer(self.model, batch_size=self.batch_size, mask_after=mask_after, find_greedy=find_greedy)

    def _encode(self, text: str | bytes) -> IdArray:
        return self.tokenizer.encode_to_array(text, allowed_special=set())

    def _document(self, text: str | bytes) -> Tokens:
        """Return the ids of a text, followed by end-of-text."""
        ids, end = self._encode(text), self.tokenizer.eos_token_id
        return ids if end is None else np.append(ids, ids.dtype.type(end))

    def _with_start(self, tokens: Tokens) -> Tokens:
        """Return `tokens` preceded by the token that comes before a document."""
        begin = start_id(self.tokenizer)
        if begin is None:
            raise ConfigError(
                "the tokenizer has no beginning-of-text or end-of-text token from which to predict a document's first "
                "token; set evaluation.windows to stream"
            )
        return Prefixed(begin, tokens)

    def _rows(self, tokens: Tokens) -> Iterator[Row]:
        return rows_of(tokens, context_length=self.context_length, stride=self.stride)

    def _continue(self, context: str, texts: Sequence[str]) -> Continuations:
        return continuation_rows(self.tokenizer, context, texts, context_length=self.context_length)

    def _share(self, rows: Sequence[Row], owner: int = 0) -> list[Pack]:
        return share_prefixes(rows, max_tokens=self.context_length, owner=owner)

    def _score(self, sequences: Iterable[Tokens], on_scored: OnScored | None) -> Tally:
        """Score all ids of documents, or of one stream of them."""
        tally = Tally(self.tokenizer.eos_token_id, on_scored)

        def rows() -> Iterator[Row]:
            for tokens in sequences:
                if self.windows == "stream" and start_id(self.tokenizer) is None:
                    tally.add_uniform(self.model.vocab_size)
                    yield from self._rows(tokens)
                else:
                    yield from self._rows(self._with_start(tokens))

        for pack, [scored] in self._scorer(mask=True).score(Pack([row]) for row in rows()):
            tally.add(pack.rows[0], scored)
        return tally


def _trained_with_masks(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint's configuration restricts attention to documents."""
    tables = tomllib.loads((checkpoint.path / "config.toml").read_text(encoding="utf-8"))
    return bool(tables.get("data", {}).get("mask_documents", False))
