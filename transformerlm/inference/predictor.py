"""From a checkpoint folder and prompts to text: the one place of inference that knows the tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.decode import decode_steps
from transformerlm.inference.stopping import StopStrings
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.tokenizer import StreamingDecoder, Tokenizer
from transformerlm.training.checkpoint import TOKENIZER_FILES, Checkpoint, load_model_state
from transformerlm.utils.devices import select_device, select_dtype
from transformerlm.utils.errors import CheckpointError, ConfigError

FinishReason = Literal["end_of_text", "stop_string", "max_new_tokens", "context_length"]


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
        decoders = [StreamingDecoder(self.tokenizer) for _ in completions]
        filters = [StopStrings(sampling.stop) for _ in completions]
        device = self.model.token_embeddings.weight.device
        steps = decode_steps(
            self.model,
            [completion.prompt_ids for completion in completions],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            eos_token_id=self.tokenizer.eos_token_id,
            generator=torch.Generator(device).manual_seed(sampling.seed),
        )
        for tokens in steps:
            for row, (completion, token) in enumerate(zip(completions, tokens, strict=True)):
                if token is None or completion.finish_reason is not None:
                    continue
                text = self._take(completion, token, decoders[row], filters[row], sampling)
                completion.text += text
                if text:
                    yield Piece(row, text)
            if all(completion.finish_reason is not None for completion in completions):
                return

    def _take(
        self,
        completion: Completion,
        token: int,
        decoder: StreamingDecoder,
        stop: StopStrings,
        sampling: SamplingHparams,
    ) -> str:
        """Add a token to a continuation; return the text that it brings to light."""
        completion.token_ids.append(token)
        if token == self.tokenizer.eos_token_id:
            completion.finish_reason = "end_of_text"
            return stop.push(decoder.flush()) + stop.flush()
        known = token < self.tokenizer.vocab_size  # a model's vocabulary may be padded with ids that mean nothing
        text = stop.push(decoder.push([token] if known else []))
        if stop.stopped:
            completion.finish_reason = "stop_string"
            return text
        if len(completion.token_ids) == sampling.max_new_tokens:
            completion.finish_reason = "max_new_tokens"
        elif len(completion.prompt_ids) + len(completion.token_ids) == self.model.context_length:
            completion.finish_reason = "context_length"
        if completion.finish_reason is not None:
            text += stop.push(decoder.flush()) + stop.flush()
        return text
