"""Text to token files, identical however the work is done: by one thread or a cluster, at once or in several attempts.

    sources ──cut_into_parts──▶ parts ──encode_part──▶ spools    sorted runs of ids, with an index    `encode`, `spool`
    spools ──cut_into_shards──▶ tasks ──write_shard──▶ shards    in the order of all keys             `shards`
    shards ──publish──▶ X.dat, X.dat.json                        all at once                          `workplace`

A document's place in the output depends on its text and the seed alone (or, without shuffling, on its place in the
sources), and so does the side it goes to. Memory depends on neither the corpus nor its longest document.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from databuilder.build import Build
from databuilder.build_directory import Say, at_work
from databuilder.encode import LongDocument, grouped
from databuilder.engine import open_executor, task_slots
from databuilder.pieces import End, ErrorPolicy, Reading, TextCounts
from databuilder.plan import SHARD_TOKENS, Plan, Source, as_files
from databuilder.progress import OnProgress
from databuilder.readers.dispatch import read_part
from databuilder.sorted_runs import TRAIN, VALID
from databuilder.splits import cut_into_parts
from transformerlm.token_files.index import TokenFileInfo, read_info
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import TransformerLMError


@dataclass(frozen=True)
class BuildReport:
    """The sidecars of what was written."""

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
    say: Say | None = None,
) -> BuildReport:
    """Encode `sources` into the token file `train`, and validation documents into `valid` if it is given.

    Validation is `valid_sources` if there are any, else `valid_fraction` (at least 0, below 1) of the documents, chosen
    by a hash of their text; at least one distinct text goes to either side, and of a single document, its end goes to
    validation. Documents are shuffled by `seed`, or stay in the order of the sources.
    Files have `shard_tokens` ids; of one, it is `train`, of more, `train` with numbers.

    `workers` threads do it (0: one a core), or the tasks of `executor`, of which `workers` are worked on at a time.
    Whoever does it, the files are the same. What is finished is kept in a folder beside `train` until all is; the same
    call after any interruption goes on from there. `progress` is told how far it is, and `say` lines for people.

    Raises `DataError`, and leaves old files as they are, if a source cannot be used, the tokenizer has no end-of-text
    token, an output is a source or another process builds it, the disk is too full, or one side would be
    empty (there is no text, or all documents are copies of one).
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
    with at_work(plan.outputs, say or (lambda _line: None)) as workplace:
        if not workplace.begin(plan.to_json()):
            build = Build(plan, workplace, progress)
            try:
                with ExitStack() as stack:
                    if executor is None:
                        executor = stack.enter_context(open_executor("local", workers))
                        stack.callback(build.stop)  # comes first: the executor waits for its threads
                    else:
                        build.name_sources_absolutely()
                    workplace.publish(build.run(executor, task_slots(executor, workers)))
            except TransformerLMError as error:
                if not build.can_go_on():
                    workplace.discard()
                    raise
                raise type(error)(f"{error}; what is finished is kept in {workplace.main}") from error
        infos = {side: read_info(output) for side, output in plan.outputs.items()}
        workplace.discard()
    return BuildReport(infos[TRAIN], infos.get(VALID))


def count_total_tokens(sources: Sequence[Source], tokenizer: Tokenizer, *, separator: str = END_OF_TEXT) -> int:
    """Return how many tokens the documents of `sources` have, with one end-of-text token each."""
    total = 0
    for part in cut_into_parts(as_files(sources)):
        for group in grouped(read_part(part, Reading(separator), TextCounts())):
            if isinstance(group, LongDocument):
                ids = sum(map(len, tokenizer.encode_parts(group.texts(), allowed_special=set())))
                total += ids + 1 if group.end is End.KEPT else 0
            else:
                ids, _ = tokenizer.encode_joined(group.data, group.ends, allowed_special=set())
                total += len(ids) + len(group)
    return total
