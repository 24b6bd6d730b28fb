"""Import a Hugging Face folder of the Llama family as a checkpoint.

    config.json ──▶ settings of our model ──▶ its tensors on the meta device: names and shapes
                                                  │ compared with the headers of the weight files
    model*.safetensors ──tensor by tensor: name, rotary layout, type──▶ model.safetensors
    tokenizer.json ──▶ vocab.json, merges.txt          state.json, config.toml, manifest.json

Everything is checked before any file is written. Memory: one tensor at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tomli_w
import torch

from transformerlm.checkpoint.fingerprint import FINGERPRINT_FILE, fingerprint
from transformerlm.checkpoint.folder import GENERATION_FILE
from transformerlm.checkpoint.integrity import FORMAT_VERSION, FolderWriter, to_json
from transformerlm.checkpoint.tensor_file import tensor_bytes, tensors_header
from transformerlm.hparams import ModelHparams
from transformerlm.interop.huggingface_config import read_model_config
from transformerlm.interop.layout import from_huggingface, huggingface_name
from transformerlm.interop.output import check_output
from transformerlm.interop.reference import family_logits, require_family
from transformerlm.interop.token_roles import CONFIG_FILE as ROLES_FILE
from transformerlm.interop.token_roles import MAX_BYTES, read_end_ids
from transformerlm.interop.tokenizer_json import read_tokenizer
from transformerlm.interop.weight_files import DTYPES, WeightFiles, require_range, require_tensors
from transformerlm.models.build import state_shapes
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.dtypes import parse_dtype
from transformerlm.utils.errors import InteropError, TokenizerError, shown
from transformerlm.utils.files import atomic_folder
from transformerlm.utils.json_file import read_json_object

_HEAD = "lm_head.weight"
_FREQUENCIES = "rotary_emb.inv_freq"
_NOT_SAMPLING = {"bos_token_id", "eos_token_id", "pad_token_id", "_from_model_config", "transformers_version"}
_SMALL_FILES = 20_000_000
"""Upper bound for the size of tokenizer and settings."""


@dataclass(frozen=True)
class ForeignModel:
    """A folder that can be imported; everything except the values of its weights has been checked."""

    folder: Path
    architecture: str
    hparams: ModelHparams
    files: WeightFiles
    shapes: dict[str, torch.Size]
    """Shapes of our tensors, by our names."""
    tokenizer: Tokenizer | None
    eos_token_ids: tuple[int, ...]
    """All ids that end a text, the tokenizer's first."""
    notes: tuple[str, ...]
    """Notes for the user, one sentence each."""

    @property
    def num_parameters(self) -> int:
        """Number of values in all weights."""
        return sum(shape.numel() for shape in self.shapes.values())

    def weight(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return our weight `name`; raise `InteropError` if its values do not fit in `dtype`."""
        hparams, theirs = self.hparams, huggingface_name(name)
        _, stored = from_huggingface(theirs, self.files.read(theirs), hparams.d_head)
        require_range(
            f"{self.files.tensors[theirs].file}: {theirs}",
            stored,
            dtype,
            not_finite="download it again",
            too_large="import it with --dtype float32",
        )
        return stored.to(dtype)


class Imported(NamedTuple):
    """Summary of an import."""

    path: Path
    architecture: str
    parameters: int
    dtype: str
    num_bytes: int
    context_length: int
    vocab_size: int
    """Rows of the embedding table; the tokenizer may have fewer ids."""
    has_tokenizer: bool


def read_huggingface(
    folder: Path, *, context_length: int | None = None, tokenizer: Literal["auto", "none"] = "auto"
) -> ForeignModel:
    """Read and check a model folder; of the weights, only the headers are read.

    `context_length` shortens the context. With `tokenizer="none"` only the weights are imported. Raises `InteropError`
    or `TokenizerError`, with the reason, if a file is damaged or describes an unsupported model or tokenizer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InteropError(
            f"{folder}: there is no such folder; a model of the hub must be downloaded first: "
            "hf download NAME --local-dir FOLDER"
        )
    architecture, hparams = read_model_config(folder, context_length=context_length)
    files = _without_frequencies(WeightFiles.open(folder))
    hparams, files, notes = _settle_tying(hparams, files)
    shapes = state_shapes(hparams)
    require_family(hparams, {huggingface_name(name): shape for name, shape in shapes.items()})
    require_tensors(files, {huggingface_name(name): shape for name, shape in shapes.items()})
    found = None if tokenizer == "none" else _read_tokenizer(folder, hparams)
    eos_token_ids, dropped = _end_ids(folder, found, hparams)
    notes += (*_tokenizer_notes(found, hparams), *dropped, *_dropped_notes(folder))
    return ForeignModel(folder, architecture, hparams, files, shapes, found, eos_token_ids, notes)


def write_checkpoint(model: ForeignModel, out: Path, dtype: str) -> Imported:
    """Write the checkpoint folder `out`, atomically, with weights of type `dtype`.

    Raises `ConfigError` if `out` exists, `InteropError` for weights that are not finite in that type, `DataError` if
    the disk lacks space or a write fails.
    """
    number_type = parse_dtype(dtype)
    check_output(out)
    like = {name: torch.empty(shape, dtype=number_type, device="meta") for name, shape in model.shapes.items()}
    header, order = tensors_header(like)

    def pieces() -> Iterator[bytes | memoryview]:
        yield header
        for name in order:
            yield tensor_bytes(model.weight(name, number_type))

    num_bytes = sum(weight.nbytes for weight in like.values())
    with atomic_folder(out, num_bytes + _SMALL_FILES) as folder:
        writer = FolderWriter(folder)
        writer.write("model.safetensors", pieces())
        logits = family_logits(
            model.hparams, lambda theirs: model.files.read(theirs).to(number_type).float()
        )  # not computed by this project's model, which is checked against these logits when it loads
        for name, data in {**_small_files(model), FINGERPRINT_FILE: fingerprint(logits)}.items():
            writer.write(name, [data])
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        writer.seal()
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    assert model.hparams.vocab_size is not None
    return Imported(
        path=out,
        architecture=model.architecture,
        parameters=model.num_parameters,
        dtype=dtype,
        num_bytes=num_bytes,
        context_length=model.hparams.context_length,
        vocab_size=model.hparams.vocab_size,
        has_tokenizer=model.tokenizer is not None,
    )


def _without_frequencies(files: WeightFiles) -> WeightFiles:
    """Leave out the rotary frequencies in old files: they follow from the settings."""
    kept = {name: tensor for name, tensor in files.tensors.items() if not name.endswith(_FREQUENCIES)}
    return WeightFiles(files.folder, kept)


def _settle_tying(hparams: ModelHparams, files: WeightFiles) -> tuple[ModelHparams, WeightFiles, tuple[str, ...]]:
    """Handle a tied model whose files have an output matrix: it stays tied if that equals the embedding table.

    Otherwise the model is imported as untied, as transformers loads it.
    """
    table = huggingface_name("token_embeddings.weight")
    if not hparams.tie_embeddings or not {_HEAD, table} <= files.tensors.keys():
        return hparams, files, ()
    pair = [files.tensors[name] for name in (_HEAD, table)]
    if any(part.shape != (hparams.vocab_size, hparams.d_model) or part.dtype not in DTYPES for part in pair):
        return hparams, files, ()  # refused by `require_tensors`, with the name
    wide = torch.promote_types(*(DTYPES[part.dtype] for part in pair))
    if torch.equal(files.read(_HEAD).to(wide), files.read(table).to(wide)):
        rest = {name: tensor for name, tensor in files.tensors.items() if name != _HEAD}
        return hparams, WeightFiles(files.folder, rest), ()
    note = "config.json says that embeddings are tied, but the weights have another output matrix: imported as untied"
    return hparams.model_copy(update={"tie_embeddings": False}), files, (note,)


def _read_tokenizer(folder: Path, hparams: ModelHparams) -> Tokenizer:
    assert hparams.vocab_size is not None
    try:
        tokenizer = read_tokenizer(folder)
    except (InteropError, TokenizerError) as error:
        raise InteropError(f"{error}; or import the weights alone with --tokenizer none") from None
    if tokenizer.vocab_size > hparams.vocab_size:
        raise InteropError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} ids, the model only {hparams.vocab_size:,}; they do "
            "not belong together; or import the weights alone with --tokenizer none"
        )
    return tokenizer


def _tokenizer_notes(tokenizer: Tokenizer | None, hparams: ModelHparams) -> tuple[str, ...]:
    assert hparams.vocab_size is not None
    if tokenizer is None:
        return ("without a tokenizer the checkpoint trains on token files and exports, but cannot read or write text",)
    more = hparams.vocab_size - tokenizer.vocab_size
    return (f"the model has {more:,} more ids than the tokenizer; they have no text",) if more else ()


def _end_ids(
    folder: Path, tokenizer: Tokenizer | None, hparams: ModelHparams
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the end-of-text ids, the tokenizer's first, and a note if some are outside the model's vocabulary."""
    assert hparams.vocab_size is not None
    first = () if tokenizer is None or tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    ids = tuple(dict.fromkeys((*first, *read_end_ids(folder))))
    outside = [token_id for token_id in ids if not 0 <= token_id < hparams.vocab_size]
    note = (f"eos_token_id names {shown(outside)}, which are not ids of the model: dropped",) if outside else ()
    return tuple(token_id for token_id in ids if token_id not in outside), note


def _dropped_notes(folder: Path) -> tuple[str, ...]:
    """Return notes on the parts of the folder that a checkpoint cannot hold."""
    notes = []
    templates = [path.name for path in sorted(folder.glob("chat_template*"))]
    if "chat_template" in _settings(folder / ROLES_FILE):
        templates.append(ROLES_FILE)
    if templates:
        notes.append(f"the chat template ({', '.join(templates)}) is dropped: prompts are continued as plain text")
    defaults = _settings(folder / GENERATION_FILE).keys() - _NOT_SAMPLING
    if defaults:
        notes.append(
            f"the sampling defaults of {GENERATION_FILE} ({shown(', '.join(sorted(defaults)))}) are dropped; "
            "set them under [sampling]"
        )
    return tuple(notes)


def _settings(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=MAX_BYTES, error=InteropError) if path.exists() else {}


def _small_files(model: ForeignModel) -> dict[str, bytes]:
    shape = {key: value for key, value in model.hparams.model_dump().items() if value is not None}
    state = {
        "format_version": FORMAT_VERSION,
        "step": 0,
        "best_step": None,
        "imported": {"architecture": model.architecture, "folder": model.folder.resolve().name},
    }
    files = {"state.json": to_json(state), "config.toml": tomli_w.dumps({"model": shape}).encode("utf-8")}
    if model.eos_token_ids and (model.tokenizer is None or len(model.eos_token_ids) > 1):
        files[GENERATION_FILE] = to_json({"eos_token_id": list(model.eos_token_ids)})
    return files
