"""OpenAI's completion objects, made of tokens as they come.

A chunk of a stream and a whole answer have the same form: an answer is the chunks of each choice joined.
"""

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, final

from transformerlm.inference.logprobs import TokenLogprobs
from transformerlm.inference.text import FinishReason
from transformerlm.serving.worker import Drawn
from transformerlm.tokenizer import StreamingDecoder, Tokenizer

_FINISH_REASONS: dict[FinishReason, str] = {
    "end_of_text": "stop",
    "stop_string": "stop",
    "max_new_tokens": "length",
    "context_length": "length",
}
_BYTES = "bytes:"
_NO_CHANCE = -9999.0
"""Stands for the logarithm of 0, which JSON does not have; as OpenAI does."""


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as text; `bytes:\\xe2\\x80` if its bytes are not UTF-8 by themselves."""
    if token_id not in tokenizer.vocab:  # of a model whose vocabulary is padded, or in a gap of the ids
        return f"token_id:{token_id}"
    data = tokenizer.vocab[token_id]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _BYTES + "".join(f"\\x{byte:02x}" for byte in data)


class Echo(NamedTuple):
    """A prompt that stands before its continuation: its text and its tokens."""

    text: str
    token_ids: Sequence[int]
    num_added: int = 0
    """How many of the first tokens are not in the text: the beginning of text, or what stands for an empty prompt."""


@final
class LogprobsWriter:
    """Makes OpenAI's `logprobs` of the tokens of one choice, and four lists more.

    `token_ids`, `token_bytes` and `top_ids` say exactly which tokens these are, `entropy` how uncertain the model was
    (nats). With `with_sampling_probs` there is also the probability with which each of `top_ids` was sampled, after
    temperature and filters. The sampled token is always in `top_logprobs`, last if it is not among the most likely.
    """

    def __init__(self, tokenizer: Tokenizer, *, with_sampling_probs: bool = False) -> None:
        self._tokenizer = tokenizer
        self._with_sampling_probs = with_sampling_probs
        self._decoder = StreamingDecoder(tokenizer)
        self._offset = 0

    def write(
        self, token_ids: Sequence[int], held: Sequence[TokenLogprobs | None], *, num_without_text: int = 0
    ) -> dict[str, Any]:
        """Return the lists for the next tokens and their log-probabilities (None for the first of all).

        The first `num_without_text` tokens bring no text: an end or beginning of text.
        """
        offsets = [
            self._find_offset(token_id, is_text=place >= num_without_text) for place, token_id in enumerate(token_ids)
        ]
        likeliest = [
            None if one is None else _likeliest(token_id, one) for token_id, one in zip(token_ids, held, strict=True)
        ]
        lists = {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [None if one is None else _finite(one.chosen) for one in held],
            "top_logprobs": [
                None if pairs is None else {self._name(token_id): value for token_id, value in pairs}
                for pairs in likeliest
            ],
            "text_offset": offsets,
            "token_ids": list(token_ids),
            "token_bytes": [self._bytes(token_id) for token_id in token_ids],
            "entropy": [None if one is None else max(0.0, _finite(one.entropy)) for one in held],
            "top_ids": [[token_id for token_id, _ in pairs or ()] for pairs in likeliest],
        }
        if self._with_sampling_probs:
            lists["sampling_probs"] = [_sampling_probs(one, pairs) for one, pairs in zip(held, likeliest, strict=True)]
        return lists

    def end_prompt(self) -> None:
        """Begin with the continuation: a character that the prompt left unfinished does not go on in it."""
        self._offset += len(self._decoder.flush())

    def _find_offset(self, token_id: int, *, is_text: bool) -> int:
        """Return where in the text the next token begins."""
        before = self._offset
        if is_text and token_id in self._tokenizer.vocab:
            self._offset += len(self._decoder.push([token_id]))
            name = self._name(token_id)
            if not name.startswith(
                _BYTES
            ):  # else it ends a character that the token before it has begun, or begins one
                return self._offset - len(name)
        return before

    def _name(self, token_id: int) -> str:
        return token_name(self._tokenizer, token_id)

    def _bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.vocab.get(token_id, b""))


def _likeliest(token_id: int, held: TokenLogprobs) -> list[tuple[int, float]]:
    pairs = [(other, _finite(value)) for other, value in held.likeliest]
    if token_id not in {other for other, _ in pairs}:
        pairs.append((token_id, _finite(held.chosen)))
    return pairs


def _sampling_probs(held: TokenLogprobs | None, pairs: list[tuple[int, float]] | None) -> list[float] | None:
    if held is None or held.sampling_probs is None or pairs is None:
        return None
    return [held.sampling_probs[token_id] for token_id, _ in pairs]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _NO_CHANCE


@final
class ChoiceWriter:
    """Makes the chunks of one choice."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        *,
        echo: Echo | None,
        with_logprobs: bool,
        keeps_new: bool,
        with_sampling_probs: bool = False,
    ) -> None:
        """`echo` is the prompt to put in front; without `keeps_new` what is generated is left out (max_tokens 0)."""
        self._index = index
        self._tokenizer = tokenizer
        self._echo = echo
        self._keeps_new = keeps_new
        self._logprobs: LogprobsWriter | None = None
        if with_logprobs:
            self._logprobs = LogprobsWriter(tokenizer, with_sampling_probs=with_sampling_probs)
        self.num_tokens = 0
        """Tokens generated, without what is left out."""

    def write(self, drawn: Drawn) -> dict[str, Any]:
        """Return the choice of the chunk for the next token; the first one brings the prompt that is echoed."""
        text, logprobs = "", None
        if self._echo is not None:
            text, logprobs = self._echo.text, self._write_prompt(self._echo, drawn.prompt_logprobs)
            self._echo = None
        if self._keeps_new:
            self.num_tokens += 1
            text += drawn.text
            logprobs = joined_logprobs(logprobs, self._write_new(drawn))
        reason = None if drawn.finish_reason is None else _FINISH_REASONS[drawn.finish_reason]
        if not self._keeps_new:
            reason = "length"
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _write_prompt(self, echo: Echo, held: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        lists = self._logprobs.write(echo.token_ids, [None, *held], num_without_text=echo.num_added)
        self._logprobs.end_prompt()
        return lists

    def _write_new(self, drawn: Drawn) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        num_without_text = 1 if drawn.finish_reason == "end_of_text" else 0
        return self._logprobs.write([drawn.token_id], [drawn.logprobs], num_without_text=num_without_text)


def joined_logprobs(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the lists of both, one after the other."""
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}


def joined_choice(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the whole choice of which these are the chunks."""
    logprobs = None
    if chunks[0]["logprobs"] is not None:
        names = chunks[0]["logprobs"]
        logprobs = {name: [item for chunk in chunks for item in chunk["logprobs"][name]] for name in names}
    text = "".join(chunk["text"] for chunk in chunks)
    return {**chunks[-1], "text": text, "logprobs": logprobs}


@final
class AnswerFrame:
    """What all chunks of an answer have in common."""

    def __init__(self, model: str) -> None:
        self._common = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def around(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return the object that holds `choices`."""
        return {**self._common, "choices": list(choices), **more}


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Return OpenAI's account of tokens; each prompt is counted once, whatever `n` is."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
