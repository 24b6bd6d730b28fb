"""`transformerlm-infer`: generate text from a checkpoint and prompts.

With `--prompt`, the text is streamed to stdout. For prompts from a configuration, one JSON record per prompt goes
to the logging backends.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.progress import say, say_compiling
from cli.utils import EXIT_OK, Invocation, run_command
from config.infer import InferConfig
from transformerlm.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformerlm.inference.predictor import Completion, Predictor

EPILOG = 'example: transformerlm-infer --checkpoint runs/stories --prompt "Once upon a time" --sampling.temperature 0.7'


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(InferConfig, _run, prog="transformerlm-infer", epilog=EPILOG)


def _run(invocation: Invocation[InferConfig]) -> int:
    config = invocation.config
    if not config.inference.prompts:
        raise ConfigError('inference.prompts: is empty; give --prompt "some text" (--prompt "" begins a new document)')
    if ("inference", "prompts") in invocation.overridden:
        print_texts(load_predictor(config), config.inference.prompts, config)
    else:
        log_completions(load_predictor(config), config)
    return EXIT_OK


def load_predictor(config: InferConfig) -> "Predictor":
    """Load the model and tokenizer that `config` names."""
    from transformerlm.inference.predictor import Predictor
    from transformerlm.utils.devices import set_threads

    settings = config.inference
    set_threads(settings.threads)
    return Predictor.from_checkpoint(
        settings.checkpoint,
        device=settings.device,
        dtype=settings.dtype,
        compiled=settings.compile,
        int8=settings.int8,
    )


def _prepare(predictor: "Predictor", config: InferConfig, *, batch_size: int) -> None:
    if config.inference.compile:
        say_compiling("the decoding steps")
        predictor.prepare(batch_size)


def print_texts(predictor: "Predictor", prompts: Sequence[str], config: InferConfig) -> None:
    """Print each prompt and its continuation on stdout as it is generated, and a summary line on stderr."""
    completions = predictor.start(prompts)
    _prepare(predictor, config, batch_size=1)
    for number, completion in enumerate(completions):
        start = time.perf_counter()
        print("\n" * bool(number) + completion.prompt, end="", flush=True)
        for piece in predictor.stream([completion], config.sampling):
            print(piece.text, end="", flush=True)
        print(flush=True)
        seconds = time.perf_counter() - start
        tokens = len(completion.token_ids)
        reason = (completion.finish_reason or "").replace("_", " ")
        say(f"[{tokens} tokens, {tokens / seconds:,.0f} tokens/s, ended by {reason}]")


def log_completions(predictor: "Predictor", config: InferConfig) -> None:
    """Continue the configured prompts in one batch, and log a record for each."""
    from logger import make_logger

    log = make_logger(config.logging, config.wandb, run_dir=None)
    code = 1
    try:
        log.start(config.model_dump(mode="json"))
        _prepare(predictor, config, batch_size=len(config.inference.prompts))
        start = time.perf_counter()
        completions = predictor.complete(config.inference.prompts, config.sampling)
        latency_ms = (time.perf_counter() - start) * 1e3
        for completion in completions:
            log.log(_record(completion, config, predictor.tokenizer.eos_token_id, latency_ms))
        code = EXIT_OK
    finally:
        log.finish(code)


def _record(completion: "Completion", config: InferConfig, eos_token_id: int | None, latency_ms: float) -> dict:
    sampling = config.sampling
    return {
        "event": "inference",
        "params.temperature": sampling.temperature,
        "params.top_k": sampling.top_k,
        "params.p": sampling.top_p,
        "params.min_p": sampling.min_p,
        "params.repetition_penalty": sampling.repetition_penalty,
        "params.max_new_tokens": sampling.max_new_tokens,
        "params.seed": sampling.seed,
        "params.eos_token_id": eos_token_id,
        "text.prompt": completion.prompt,
        "text.output": completion.text,
        "text.finish_reason": completion.finish_reason,
        "metrics.prompt_tokens": len(completion.prompt_ids),
        "metrics.output_tokens": len(completion.token_ids),
        "metrics.latency_ms": latency_ms,
    }


if __name__ == "__main__":
    sys.exit(main())
