"""`transformerlm-import`: import a Llama-family model from a Hugging Face folder."""

import json
import sys
from typing import TYPE_CHECKING

from cli.progress import say
from cli.utils import EXIT_OK, Invocation, run_command
from config.import_model import ImportConfig, ImportSection

if TYPE_CHECKING:
    from transformerlm.interop.huggingface_import import Imported

EPILOG = """example: transformerlm-import --hf downloads/SmolLM2-135M --out imported/smollm
next: transformerlm-infer --checkpoint imported/smollm --prompt "Once upon a time", or train it further:
transformerlm-train --training.init-from imported/smollm --data.tokenizer imported/smollm …
"""


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(ImportConfig, _run, prog="transformerlm-import", epilog=EPILOG)


def _run(invocation: Invocation[ImportConfig]) -> int:
    written = import_model(invocation.config.import_model)
    record = {
        "event": "import",
        "path": str(written.path),
        "architecture": written.architecture,
        "parameters": written.parameters,
        "dtype": written.dtype,
        "bytes": written.num_bytes,
        "context_length": written.context_length,
        "vocab_size": written.vocab_size,
        "tokenizer": written.has_tokenizer,
    }
    print(json.dumps(record), flush=True)
    return EXIT_OK


def import_model(settings: ImportSection) -> "Imported":
    """Write the checkpoint that `settings` describe, with progress on stderr; return what was written."""
    from transformerlm.interop.huggingface_import import read_huggingface, write_checkpoint
    from transformerlm.interop.output import check_output
    from transformerlm.utils.files import size_text

    check_output(settings.out)
    model = read_huggingface(settings.hf, context_length=settings.context_length, tokenizer=settings.tokenizer)
    say(
        f"reading {settings.hf}: {model.architecture}, {model.num_parameters:,} parameters, "
        f"a context of {model.hparams.context_length:,} tokens"
    )
    for note in model.notes:
        say(f"note: {note}")
    written = write_checkpoint(model, settings.out, settings.dtype)
    say(f"wrote {written.path}: {size_text(written.num_bytes)}, weights in {written.dtype}")
    if written.has_tokenizer:
        say(f'next: transformerlm-infer --checkpoint {written.path} --prompt "Once upon a time"')
    return written


if __name__ == "__main__":
    sys.exit(main())
