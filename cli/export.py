"""`transformerlm-export`: export a checkpoint to a Hugging Face folder or a GGUF file."""

import json
import sys
from typing import TYPE_CHECKING

from cli.progress import say
from cli.utils import EXIT_OK, Invocation, run_command
from config.export import ExportConfig, ExportSection

if TYPE_CHECKING:
    from transformerlm.interop.source import Written

EPILOG = "example: transformerlm-export --checkpoint runs/stories --format gguf --out stories.gguf --dtype float16"


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(ExportConfig, _run, prog="transformerlm-export", epilog=EPILOG)


def _run(invocation: Invocation[ExportConfig]) -> int:
    written = export(invocation.config.export)
    _tell(written)
    record = {
        "event": "export",
        "path": str(written.path),
        "format": written.format,
        "dtype": written.dtype,
        "architecture": written.architecture,
        "parameters": written.parameters,
        "bytes": written.num_bytes,
    }
    print(json.dumps(record), flush=True)
    return EXIT_OK


def export(settings: ExportSection) -> "Written":
    """Write the model that `settings` name in the format they name; return what was written."""
    from transformerlm.interop.gguf_export import export_gguf, load_gguf
    from transformerlm.interop.huggingface_export import export_huggingface
    from transformerlm.interop.output import check_output
    from transformerlm.interop.source import read_source

    check_output(settings.out)  # before the checkpoint is read, which takes time
    if settings.format == "gguf":
        load_gguf()
    source = read_source(settings.checkpoint, settings.dtype)
    return (export_gguf if settings.format == "gguf" else export_huggingface)(source, settings.out)


def _tell(written: "Written") -> None:
    """Log what was written and how to load it."""
    from transformerlm.utils.files import size_text

    say(
        f"wrote {written.path}: {written.architecture}, {written.parameters:,} parameters in {written.dtype}, "
        f"{size_text(written.num_bytes)}"
    )
    for note in written.notes:
        say(f"note: {note}")
    if written.format == "gguf":
        say(f'next: llama-cli -m {written.path} -no-cnv -p "Once upon a time"')
    else:
        say(f"next: AutoModelForCausalLM.from_pretrained({str(written.path)!r}), or: vllm serve {written.path}")


if __name__ == "__main__":
    sys.exit(main())
