"""Text to token files: an external sort of documents by a hash of their text.

    sources ──cut_into_splits──▶ input splits ──encode_split──▶ sorted runs     one file of runs per input split
    sorted runs ──cut_into_shards──▶ range partitions ──write_shard──▶ shards   the merge, in the order of all keys
    shards ──publish──▶ X.dat, X.dat.json                                       by a journal of renames

A document's position in the output and its side, training or validation, depend only on its text and the seed (without
shuffling, the position is that in the sources). So the files are identical for one thread or a cluster, in one go or
after interruptions. Memory use depends on neither the size of the corpus nor its longest document.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from databuilder.build import Build
from databuilder.build_directory import Log, lock_build_directory
from databuilder.encode import LongDocument, grouped
from databuilder.engine import open_executor, task_slots
from databuilder.pieces import End, ErrorPolicy, Reading, TextCounts
from databuilder.plan import SHARD_TOKENS, Plan, Source, as_files
from databuilder.progress import OnProgress
from databuilder.readers.dispatch import read_split
from databuilder.sorted_runs import TRAIN, VALID
from databuilder.splits import cut_into_splits
from transformerlm.token_files.index import TokenFileInfo, read_info
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import TransformerLMError


@dataclass(frozen=True)
class BuildReport:
    """The sidecars of the written token files."""

    train: TokenFileInfo
    valid: TokenFileInfo | None


def build_dataset(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    train: Path,
    *,
    valid: Path | None = None,
    valid_sources: Sequence[Source] = (),
    valid_fraction: float = 0.0,
    separator: str = END_OF_TEXT,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    skip_null: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 0,
    executor: Executor | None = None,
    progress: OnProgress | None = None,
    log: Log | None = None,
) -> BuildReport:
    """Encode `sources` into the token file `train`, and validation documents into `valid` if it is given.

    Validation is `valid_sources` if given, else `valid_fraction` (at least 0, below 1) of the documents, chosen by a
    hash of their text. At least one distinct text goes to each side; a single document is cut, and its end goes to
    validation. Documents are shuffled by `seed`, or stay in the order of the sources. A file holds at most
    `shard_tokens` ids; a single file is named `train`, several are numbered.

    The work is done by `workers` threads (0: one per core), or by tasks of `executor`, at most `workers` at a time; the
    files are the same either way. Finished work is kept in a folder beside `train`, and the same call resumes from it
    after any interruption. `progress` is called a few times per second, `log` with lines for people to read.

    Raises `DataError`, and leaves old files unchanged, if a source cannot be used, the tokenizer has no end-of-text
    token, an output is also a source, another process is building it, the disk is too full, or one side would be empty
    (because all documents are empty or copies of one).
    """
    assert valid is not None or not valid_sources, "valid_sources need a file to go to"
    plan = Plan(
        files=as_files(sources),
        valid_files=as_files(valid_sources),
        tokenizer=tokenizer,
        outputs={TRAIN: Path(train)} if valid is None else {TRAIN: Path(train), VALID: Path(valid)},
        valid_fraction=0.0 if valid is None or valid_sources else valid_fraction,
        reading=Reading(separator, text_field, errors, skip_null),
        shuffle=shuffle,
        seed=seed,
        shard_tokens=shard_tokens,
    )
    plan.check()
    with lock_build_directory(plan.outputs, log or (lambda _line: None)) as directory:
        if not directory.begin(plan.to_json()):
            build = Build(plan, directory, progress)
            try:
                with ExitStack() as stack:
                    if executor is None:
                        executor = stack.enter_context(open_executor("local", workers))
                        stack.callback(build.stop)  # comes first: the executor waits for its threads
                    else:
                        build.use_absolute_paths()
                    directory.publish(build.run(executor, task_slots(executor, workers)))
            except TransformerLMError as error:
                if not build.can_resume():
                    directory.discard()
                    raise
                raise type(error)(f"{error}; what is finished is kept in {directory.main}") from error
        infos = {side: read_info(output) for side, output in plan.outputs.items()}
        directory.discard()
    return BuildReport(infos[TRAIN], infos.get(VALID))


def count_total_tokens(sources: Sequence[Source], tokenizer: Tokenizer, *, separator: str = END_OF_TEXT) -> int:
    """Return the number of tokens in the documents of `sources`, including one end-of-text token for each."""
    total = 0
    for split in cut_into_splits(as_files(sources)):
        for group in grouped(read_split(split, Reading(separator), TextCounts())):
            if isinstance(group, LongDocument):
                ids = sum(map(len, tokenizer.encode_parts(group.texts(), allowed_special=set())))
                total += ids + 1 if group.end is End.FINAL else 0
            else:
                ids, _ = tokenizer.encode_joined(group.data, group.ends, allowed_special=set())
                total += len(ids) + len(group)
    return total
