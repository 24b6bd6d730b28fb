"""From a checkpoint folder and prompts to text: the one place of inference that knows the tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.engine import MAX_BATCH_SIZE, Engine, NewToken, Request
from transformerlm.inference.stopping import StopStrings
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.tokenizer import StreamingDecoder, Tokenizer
from transformerlm.training.checkpoint import TOKENIZER_FILES, Checkpoint, load_model_state
from transformerlm.utils.devices import select_device, select_dtype
from transformerlm.utils.errors import CheckpointError, ConfigError

FinishReason = Literal["end_of_text", "max_new_tokens", "context_length", "stop_string", "cancelled"]


class Piece(NamedTuple):
    """Text that has just been generated for prompt number `row`."""

    row: int
    text: str


@dataclass
class Completion:
    """A prompt's continuation: its text so far, the ids of all tokens decoded, and why it ended."""

    prompt: str
    prompt_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Predictor:
    """A model and its tokenizer, ready to continue prompts."""

    def __init__(self, model: TransformerLM, tokenizer: Tokenizer) -> None:
        """Raises `CheckpointError` if the tokenizer has more ids than the model."""
        if tokenizer.vocab_size > model.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {model.vocab_size}; "
                "they are not of the same checkpoint"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_checkpoint(cls, path: Path | str, *, device: str = "auto", dtype: str = "auto") -> "Predictor":
        """Load a checkpoint folder, or the newest checkpoint of a run folder; nothing else is needed.

        Raises `CheckpointError` if it is missing, damaged, or was saved without a tokenizer.
        """
        chosen = select_device(device)
        checkpoint = Checkpoint.open(Path(path))
        if not all((checkpoint.path / name).exists() for name in TOKENIZER_FILES):
            raise CheckpointError(f"{checkpoint.path}: holds no tokenizer, so it cannot read or write text")
        model = build_model(checkpoint.model_hparams(), device="meta")
        model = model.to_empty(device="cpu")
        load_model_state(model, checkpoint.model_state())
        return cls(model.to(chosen, select_dtype(dtype, chosen)), Tokenizer.load(checkpoint.path))

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of a prompt; an empty one becomes the end-of-text id, which begins a new document.

        Raises `ConfigError` if the prompt leaves no room in the context.
        """
        ids = self.tokenizer.encode(prompt)
        if not ids:
            if self.tokenizer.eos_token_id is None:
                raise ConfigError("the prompt is empty, and the tokenizer has no end-of-text token to begin with")
            return [self.tokenizer.eos_token_id]
        if len(ids) >= self.model.context_length:
            raise ConfigError(
                f"the prompt has {len(ids):,} tokens, the model's context {self.model.context_length:,}; "
                "shorten the prompt so that at least one token fits after it"
            )
        return ids

    def complete(self, prompts: Sequence[str], sampling: SamplingHparams) -> list[Completion]:
        """Return the continuations of all prompts, decoded in one batch."""
        completions = self.start(prompts)
        for _ in self.stream(completions, sampling):
            pass
        return completions

    def start(self, prompts: Sequence[str]) -> list[Completion]:
        """Return empty continuations for `stream` to fill; raises `ConfigError` as `encode_prompt` does."""
        return [Completion(prompt, self.encode_prompt(prompt)) for prompt in prompts]

    def stream(self, completions: Sequence[Completion], sampling: SamplingHparams) -> Iterator[Piece]:
        """Decode all continuations in one batch, fill them in, and yield their text as it comes.

        No piece ends within a character or shows the start of a stop string that follows.
        """
        if not completions:
            return
        engine = Engine(
            self.model,
            eos_token_id=self.tokenizer.eos_token_id,
            max_batch_size=min(len(completions), MAX_BATCH_SIZE),
        )
        writers: dict[Request, tuple[int, _Writer]] = {}
        for row, completion in enumerate(completions):
            of_row = sampling.model_copy(update={"seed": (sampling.seed + row) % 2**63})
            request = engine.submit(completion.prompt_ids, of_row)
            writers[request] = row, _Writer(completion, self.tokenizer, StopStrings(sampling.stop))
        for token in engine.run():
            row, writer = writers[token.request]
            text = writer.take(token)
            if writer.completion.finish_reason == "stop_string":
                engine.cancel(token.request)
            if text:
                yield Piece(row, text)


class _Writer:
    """Makes text of the tokens of one continuation."""

    def __init__(self, completion: Completion, tokenizer: Tokenizer, stop: StopStrings) -> None:
        self.completion = completion
        self._tokenizer = tokenizer
        self._decoder = StreamingDecoder(tokenizer)
        self._stop = stop

    def take(self, token: NewToken) -> str:
        """Add a token to the continuation; return the text that it brings to light."""
        completion, token_id = self.completion, token.token_id
        completion.token_ids.append(token_id)
        reason = token.finish_reason
        # A model's vocabulary may be padded with ids that mean nothing; the end of text is none either.
        is_text = token_id < self._tokenizer.vocab_size and reason != "end_of_text"
        text = self._stop.push(self._decoder.push([token_id] if is_text else []))
        if self._stop.stopped:
            reason = "stop_string"
        elif reason is not None:
            text += self._stop.push(self._decoder.flush()) + self._stop.flush()
        completion.finish_reason = reason
        completion.text += text
        return text
