"""Text of the tokens of one continuation, as they come: whole characters, up to the first stop string."""

from collections.abc import Sequence
from typing import Literal, final

from transformerlm.inference.engine import NewToken
from transformerlm.inference.stopping import StopStrings
from transformerlm.tokenizer import StreamingDecoder, Tokenizer

FinishReason = Literal["end_of_text", "max_new_tokens", "context_length", "stop_string", "cancelled"]


@final
class TextWriter:
    """Makes text of the tokens of one continuation; `finish_reason` says why it ended, if it has.

    The pieces that `take` returns join to the continuation's text: none ends within a character or shows the start of a
    stop string that follows.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        """`stop` are the strings that end the text; they are no part of it."""
        self._tokenizer = tokenizer
        self._decoder = StreamingDecoder(tokenizer)
        self._stop = StopStrings(stop)
        self.finish_reason: FinishReason | None = None

    def take(self, token: NewToken) -> str:
        """Take the next token; return the text that it brings to light."""
        reason = token.finish_reason
        # A model's vocabulary may be padded with ids that mean nothing; the end of text is none either.
        is_text = token.token_id in self._tokenizer.vocab and reason != "end_of_text"
        text = self._stop.push(self._decoder.push([token.token_id] if is_text else []))
        if not self._stop.stopped and reason is not None:
            text += self._stop.push(self._decoder.flush()) + self._stop.flush()
        self.finish_reason = "stop_string" if self._stop.stopped else reason
        return text
