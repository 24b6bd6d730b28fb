"""The external sort of a build: sorted runs of encoded documents first, then a merge by range partition into shards.

Both phases run as tasks of an executor. The keys are hashes of the documents' text, so their order is a shuffle.
"""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from databuilder.build_directory import BuildDirectory
from databuilder.encode import encode_split, finish_split
from databuilder.job import Job, SharedTokenizer, SortOrder, Work
from databuilder.merge_shards import (
    ShardTask,
    WrittenShard,
    cut_into_shards,
    finished_shard,
    key_histogram,
    write_shard,
)
from databuilder.one_document import CutDocument, cut_only_document
from databuilder.pieces import TextCounts
from databuilder.plan import Plan
from databuilder.progress import OnProgress, Report
from databuilder.sorted_runs import TRAIN, VALID, Summary
from databuilder.source_file import InputSplit, SourceFile
from databuilder.sources import describe_source, log_empty_sources
from transformerlm.token_files.index import FORMAT_VERSION, TokenFileInfo, id_dtype, joint_sha256
from transformerlm.utils.errors import DataError
from transformerlm.utils.parallel import finished_tasks, worker_count
from transformerlm.utils.text_files import is_url


@final
class Build:
    """Makes the shards of a plan in its build directory."""

    def __init__(self, plan: Plan, directory: BuildDirectory, on_progress: OnProgress | None) -> None:
        self._plan = plan
        self._log = directory.log
        self._folders = {side: folder.absolute() for side, folder in directory.folders.items()}
        self._splits = plan.input_splits()
        self._names = [split.source.name for split in self._splits]
        self._report = Report(self._splits, on_progress)
        train_names = {file.name for file in plan.files}
        self._num_train_splits = sum(name in train_names for name in self._names)
        self._is_hopeless = False

    def use_absolute_paths(self) -> None:
        """Name sources by absolute paths, for workers whose current folder is not the one of this process."""
        self._splits = [_with_absolute_name(split) for split in self._splits]

    def stop(self) -> None:
        """Ask the tasks in this process to stop soon."""
        self._report.meter.stopped = True

    def can_resume(self) -> bool:
        """Return whether the next build of the same plan could reuse finished work."""
        return not self._is_hopeless and any(self._folders[TRAIN].glob("part-??????"))

    def run(self, executor: Executor, slots: int) -> dict[int, TokenFileInfo]:
        """Do the work that is not finished yet, and return the sidecars. Raises the errors of `build_dataset`."""
        job = self._make_job()
        summaries = self._encode(job, executor, slots)
        self._check_sources()
        valid_below = self._valid_below(summaries)
        if valid_below != job.valid_below:
            job = replace(job, valid_below=valid_below)
            for number, summary in enumerate(summaries):
                if _sides_differ(summary, valid_below):
                    job.run_file(number).unlink()
            summaries = self._encode(job, executor, slots)
            self._check_sources()
        cut = None
        if self._plan.valid_fraction and sum(sum(summary.num_documents) for summary in summaries) == 1:
            cut = cut_only_document(job)
        self._check_sides(summaries, cut)
        self._log_empty(summaries)
        shards = self._write(job, cut, executor, slots)
        return {side: self._describe(side, summaries, shards, cut) for side in self._folders}

    def _make_job(self) -> Job:
        plan, tokenizer = self._plan, self._plan.tokenizer
        assert tokenizer.eos_token_id is not None
        folder = self._folders[TRAIN]
        return Job(
            folder=folder,
            tokenizer=SharedTokenizer(tokenizer, folder / "tokenizer", plan.text_bytes()),
            end_of_text_id=tokenizer.eos_token_id,
            dtype=id_dtype(tokenizer.vocab_size),
            reading=plan.reading,
            order=SortOrder(plan.shuffle, plan.seed, len(self._splits)),
            first_valid_split=self._num_train_splits,
            valid_fraction=plan.valid_fraction,
            valid_below=math.ceil(plan.valid_fraction * 2.0**64),
            threads=1,
            meter=self._report.meter,
        )

    def _encode(self, job: Job, executor: Executor, slots: int) -> list[Summary]:
        """Write the run files that are missing; return the summaries of all of them, by split."""
        there = [split.number for split in self._splits if job.run_file(split.number).exists()]
        summaries = {number: Summary.read(job.run_file(number)) for number in there}
        for number in there:
            self._note_split(number, summaries[number])
        todo = [split for split in self._splits if split.number not in summaries]
        job = replace(job, threads=_threads_per_task(slots, len(todo)))
        task = partial(encode_split, job)
        for number, summary in finished_tasks(executor, task, todo, slots=slots, on_tick=self._report.tick):
            finish_split(job, number)
            summaries[number] = summary
            self._note_split(number, summary)
        self._report.tick()
        return [summaries[number] for number in range(len(self._splits))]

    def _note_split(self, number: int, summary: Summary) -> None:
        work = Work(self._splits[number].num_bytes, sum(summary.num_documents), sum(summary.num_ids))
        self._report.finish_split(number, work)

    def _valid_below(self, summaries: Sequence[Summary]) -> int:
        """Return the hash below which documents go to validation, so that neither side is empty.

        That is `valid_fraction` of the range of hashes; if it leaves a side empty, the document with the nearest hash
        changes sides, together with its duplicates. The result depends only on the hashes of all documents, so an
        interrupted build arrives at the same split.
        """
        wanted = math.ceil(self._plan.valid_fraction * 2.0**64)
        smallest = min((summary.hashes[0] for summary in summaries if summary.hashes), default=0)
        largest = max((summary.hashes[1] for summary in summaries if summary.hashes), default=0)
        if not wanted or smallest == largest or smallest < wanted <= largest:
            return wanted
        side = "validation" if wanted <= smallest else "training"
        self._log(
            f"a valid_fraction of {self._plan.valid_fraction} selects no document for {side}; "
            "the document with the nearest hash goes there"
        )
        return smallest + 1 if wanted <= smallest else largest

    def _check_sources(self) -> None:
        """Raise `DataError` if a file changed since the build began."""
        for file in self._plan.all_files:
            if not is_url(file.name) and describe_source(file.name, format=file.format) != file:
                self._is_hopeless = True
                raise DataError(f"{file.name}: was changed while it was read; start again")

    def _log_empty(self, summaries: Sequence[Summary]) -> None:
        num_documents = Counter[str]()
        for name, summary in zip(self._names, summaries, strict=True):
            num_documents[name] += sum(summary.num_documents)
        log_empty_sources(self._plan.all_files, num_documents, self._log)

    def _check_sides(self, summaries: Sequence[Summary], cut: CutDocument | None) -> None:
        """Raise `DataError` if a side would be empty."""
        plan = self._plan
        documents = [sum(summary.num_documents[side] for summary in summaries) for side in (TRAIN, VALID)]
        self._is_hopeless = True
        if plan.valid_files and not documents[VALID]:
            raise DataError(f"{_named(plan.valid_files)}: holds no document for validation; is the text empty?")
        if not (documents[TRAIN] if plan.valid_files else sum(documents)):
            raise DataError(f"{_named(plan.files)}: no document is left for training; is the text empty?")
        if cut is not None and not (cut.train.num_ids and cut.valid.num_ids):
            raise DataError(
                f"{_named(plan.files)}: the only document is too short to cut its end off for validation; "
                "give more text, or name other files as input.valid_sources"
            )
        if cut is None and plan.valid_fraction and 0 in documents:
            raise DataError(
                f"{_named(plan.files)}: all {sum(documents):,} documents are duplicates of one, and equal documents "
                "stay on one side; leave the duplicates out, or name other files as input.valid_sources"
            )
        self._is_hopeless = False

    def _write(self, job: Job, cut: CutDocument | None, executor: Executor, slots: int) -> list[WrittenShard]:
        """Write the shards that are missing; return all of them in order."""
        tasks = [task for side in self._folders for task in self._shard_tasks(job, side, cut)]
        self._report.begin_writing(sum(task.end - task.begin for task in tasks))
        job = replace(job, meter=self._report.meter, threads=2 if len(tasks) < 2 * slots else 1)
        shards = [shard for task in tasks if (shard := finished_shard(job, task)) is not None]
        for shard in shards:
            self._note_shard(shard)
        there = {(shard.side, shard.number) for shard in shards}
        todo = [task for task in tasks if (task.side, task.number) not in there]
        for shard in finished_tasks(executor, partial(write_shard, job), todo, slots=slots, on_tick=self._report.tick):
            shards.append(shard)
            self._note_shard(shard)
        self._report.tick()
        return sorted(shards, key=lambda shard: (shard.side, shard.number))

    def _note_shard(self, shard: WrittenShard) -> None:
        work = Work(0, shard.shard.num_documents, shard.shard.num_tokens)
        self._report.meter.by_task[shard.task_number] = work

    def _shard_tasks(self, job: Job, side: int, cut: CutDocument | None) -> list[ShardTask]:
        only = None if cut is None else (cut.train, cut.valid)[side]
        return cut_into_shards(
            key_histogram(job, side) if only is None else np.array([only.num_ids + 1]),
            shard_tokens=self._plan.shard_tokens,
            side=side,
            folder=self._folders[side],
            output=self._plan.outputs[side],
            only=only,
        )

    def _describe(
        self, side: int, summaries: Sequence[Summary], shards: Sequence[WrittenShard], cut: CutDocument | None
    ) -> TokenFileInfo:
        plan = self._plan
        of_side = [written for written in shards if written.side == side]
        entries = tuple(written.shard for written in of_side)
        begin, end = (self._num_train_splits, None) if plan.files_of(side) is plan.valid_files else (0, None)
        if plan.valid_files and side == TRAIN:
            end = self._num_train_splits
        counts = TextCounts()
        for summary in summaries[begin:end]:
            counts.add(TextCounts.from_json(summary.counts))
        text_bytes = sum(summary.num_text_bytes[side] for summary in summaries)
        return TokenFileInfo(
            format_version=FORMAT_VERSION,
            dtype=id_dtype(plan.tokenizer.vocab_size),
            num_tokens=sum(shard.num_tokens for shard in entries),
            num_documents=sum(shard.num_documents for shard in entries),
            num_text_bytes=text_bytes if cut is None else cut.num_text_bytes[side],
            vocab_size=plan.tokenizer.vocab_size,
            max_token_id=max(written.max_token_id for written in of_side),
            end_of_text_id=plan.tokenizer.eos_token_id,
            tokenizer_sha256=plan.tokenizer.sha256(),
            data_sha256=joint_sha256(entries),
            sources=[{"path": file.name, "bytes": file.num_bytes} for file in plan.files_of(side)],
            split={**plan.split(), "part": "valid" if side == VALID else "train"},
            shards=entries,
            text=counts.to_json(),
        )


def _threads_per_task(slots: int, num_tasks: int) -> int:
    """Return the threads of each task: more than one if there are fewer tasks than slots."""
    return max(1, min(slots // max(1, num_tasks), worker_count(0)))


def _with_absolute_name(split: InputSplit) -> InputSplit:
    if is_url(split.source.name):
        return split
    return replace(split, source=replace(split.source, name=str(Path(split.source.name).absolute())))


def _sides_differ(summary: Summary, valid_below: int) -> bool:
    """Return whether the new limit of `_valid_below` moves documents of a run file to the other side."""
    low, high = sorted((summary.valid_below, valid_below))
    return any(low <= limit < high for limit in summary.hashes)


def _named(files: Sequence[SourceFile]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")
