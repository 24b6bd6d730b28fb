"""From a checkpoint folder and prompts to text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from transformerlm.checkpoint.folder import TOKENIZER_FILES, Checkpoint, load_model_state
from transformerlm.checkpoint.shapes import model_without_memory
from transformerlm.hparams import SamplingHparams
from transformerlm.inference.engine import MAX_BATCH_SIZE, Engine, Request
from transformerlm.inference.text import FinishReason, TextWriter
from transformerlm.models import TransformerLM
from transformerlm.tokenizer import Tokenizer
from transformerlm.tokenizer.tokenizer import AllowedSpecial
from transformerlm.utils.devices import select_device, select_dtype
from transformerlm.utils.errors import CheckpointError, ConfigError, require_list


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

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Sequence[int] = (),
        compiled: bool = False,
        int8: bool = False,
    ) -> None:
        """`eos_token_ids` end a text as the tokenizer's end of text does.

        `compiled` and `int8` are those of `Engine`, one of which is made with the first prompts.

        Raises `CheckpointError` if the tokenizer has more ids than the model.
        """
        if tokenizer.vocab_size > model.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {model.vocab_size}; "
                "they are not of the same checkpoint"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        end = tokenizer.eos_token_id
        ids = [*([] if end is None else [end]), *eos_token_ids]
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys(ids))
        """All ids that end a text, the tokenizer's first."""
        self._compiled, self._int8 = compiled, int8
        self._engine: Engine | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str | Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        compiled: bool = False,
        int8: bool = False,
    ) -> "Predictor":
        """Load a checkpoint, given as its folder, as a run folder (its newest one), or opened already.

        Raises `CheckpointError` if it is missing, damaged, was saved without a tokenizer, or was made by code that
        computes other logits; warns if they differ little.
        """
        chosen = select_device(device)
        checkpoint = path if isinstance(path, Checkpoint) else Checkpoint.open(Path(path))
        if not all((checkpoint.path / name).exists() for name in TOKENIZER_FILES):
            raise CheckpointError(
                f"{checkpoint.path}: holds no tokenizer, so it cannot read or write text; make it again with one"
            )
        state = checkpoint.model_state()
        checkpoint.require_same_code(state)
        model = model_without_memory(checkpoint.model_hparams(), state)
        model.materialise("cpu")
        load_model_state(model, state)
        model = model.to(chosen, select_dtype(dtype, chosen))
        return cls(
            model,
            Tokenizer.load(checkpoint.path),
            eos_token_ids=checkpoint.eos_token_ids,
            compiled=compiled,
            int8=int8,
        )

    def encode_prompt(self, prompt: str, *, allowed_special: AllowedSpecial = "all") -> list[int]:
        """Return the ids of a prompt, after the token that begins texts, if the tokenizer has one.

        `allowed_special` are the special tokens that are recognised in it, as in `Tokenizer.encode`.

        Without that, an empty prompt becomes the end-of-text id, which begins a new document.

        Raises `ConfigError` if the prompt leaves no room in the context.
        """
        beginning = self.tokenizer.bos_token_id
        ids = self.tokenizer.encode(prompt, allowed_special=allowed_special)
        if beginning is not None:
            ids = [beginning, *ids]
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
        require_list("prompts", prompts)
        return [Completion(prompt, self.encode_prompt(prompt)) for prompt in prompts]

    def stream(self, completions: Sequence[Completion], sampling: SamplingHparams) -> Iterator[Piece]:
        """Decode all continuations in one batch, fill them in, and yield their text as it comes.

        No piece ends within a character or shows the start of a stop string that follows.
        """
        if not completions:
            return
        engine = self._idle_engine(min(len(completions), MAX_BATCH_SIZE))
        writers: dict[Request, tuple[int, TextWriter]] = {}
        for row, completion in enumerate(completions):
            of_row = sampling.model_copy(update={"seed": (sampling.seed + row) % 2**63})
            request = engine.submit(completion.prompt_ids, of_row)
            writers[request] = row, TextWriter(self.tokenizer, sampling.stop)
        try:
            for token in engine.run():
                row, writer = writers[token.request]
                text = writer.take(token)
                completion = completions[row]
                completion.token_ids.append(token.token_id)
                completion.text += text
                completion.finish_reason = writer.finish_reason
                if writer.finish_reason == "stop_string":
                    engine.cancel(token.request)
                if text:
                    yield Piece(row, text)
        finally:  # where nobody wants the rest
            for request in writers:
                engine.cancel(request)

    def prepare(self, batch_size: int) -> None:
        """Make the engine for so many prompts at a time, and compile it if it is to be, before they come."""
        self._idle_engine(min(batch_size, MAX_BATCH_SIZE))

    def new_engine(self, batch_size: int) -> Engine:
        """Return an engine for so many rows at a time."""
        return Engine(
            self.model,
            eos_token_ids=self.eos_token_ids,
            max_batch_size=batch_size,
            compiled=self._compiled,
            int8=self._int8,
        )

    def _idle_engine(self, batch_size: int) -> Engine:
        """Return an engine without work: if it is compiled, that of last time, if it will do."""
        kept = self._engine
        if kept is not None and not kept.has_work and kept.max_batch_size >= batch_size:
            return kept
        engine = self.new_engine(batch_size)
        self._engine = engine if self._compiled else None
        return engine
