"""A build at work: its two phases, one after the other, by the tasks of an executor."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from databuilder.build_directory import Workplace
from databuilder.encode import encode_part, finish_part
from databuilder.job import Job, Order, SharedTokenizer, Work
from databuilder.merge_shards import (
    ShardTask,
    WrittenShard,
    cut_into_shards,
    finished_shard,
    ids_by_bucket,
    write_shard,
)
from databuilder.one_document import CutDocument, cut_only_document
from databuilder.pieces import TextCounts
from databuilder.plan import Plan
from databuilder.progress import OnProgress, Report
from databuilder.sorted_runs import TRAIN, VALID, Summary
from databuilder.sources import SourceFile, describe_source, say_empty
from databuilder.splits import Part
from transformerlm.token_files.index import FORMAT_VERSION, TokenFileInfo, id_dtype, joint_sha256
from transformerlm.utils.errors import DataError
from transformerlm.utils.parallel import finished_tasks, worker_count
from transformerlm.utils.text_files import is_url


@final
class Build:
    """Makes the shards of a plan in its workplace."""

    def __init__(self, plan: Plan, workplace: Workplace, on_progress: OnProgress | None) -> None:
        self._plan = plan
        self._say = workplace.say
        self._folders = {side: folder.absolute() for side, folder in workplace.folders.items()}
        self._parts = plan.parts()
        self._names = [part.source.name for part in self._parts]
        self._report = Report(self._parts, on_progress)
        train_names = {file.name for file in plan.files}
        self._num_train_parts = sum(name in train_names for name in self._names)
        self._is_hopeless = False

    def name_sources_absolutely(self) -> None:
        """For tasks that do not run in the folder of this process."""
        self._parts = [_with_absolute_name(part) for part in self._parts]

    def stop(self) -> None:
        """Let the tasks that run in this process end soon."""
        self._report.meter.stopped = True

    def can_go_on(self) -> bool:
        """Return whether anything is finished that the next build of the same plan could use."""
        return not self._is_hopeless and any(self._folders[TRAIN].glob("part-??????"))

    def run(self, executor: Executor, slots: int) -> dict[int, TokenFileInfo]:
        """Do what is not done yet, and return the sidecars. Raises the errors of `build_dataset`."""
        job = self._make_job()
        summaries = self._encode(job, executor, slots)
        self._check_sources()
        valid_below = self._valid_below(summaries)
        if valid_below != job.valid_below:
            job = replace(job, valid_below=valid_below)
            for number, summary in enumerate(summaries):
                if _sides_differ(summary, valid_below):
                    job.spool(number).unlink()
            summaries = self._encode(job, executor, slots)
            self._check_sources()
        cut = None
        if self._plan.valid_fraction and sum(sum(summary.num_documents) for summary in summaries) == 1:
            cut = cut_only_document(job)
        self._check_sides(summaries, cut)
        self._say_empty(summaries)
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
            order=Order(plan.shuffle, plan.seed, len(self._parts)),
            first_valid_part=self._num_train_parts,
            valid_fraction=plan.valid_fraction,
            valid_below=math.ceil(plan.valid_fraction * 2.0**64),
            threads=1,
            meter=self._report.meter,
        )

    def _encode(self, job: Job, executor: Executor, slots: int) -> list[Summary]:
        """Make the spools that are not there; return what is in all of them, by part."""
        there = [part.number for part in self._parts if job.spool(part.number).exists()]
        summaries = {number: Summary.read(job.spool(number)) for number in there}
        for number in there:
            self._note_part(number, summaries[number])
        todo = [part for part in self._parts if part.number not in summaries]
        job = replace(job, threads=_threads_a_task(slots, len(todo)))
        task = partial(encode_part, job)
        for number, summary in finished_tasks(executor, task, todo, slots=slots, on_tick=self._report.tick):
            finish_part(job, number)
            summaries[number] = summary
            self._note_part(number, summary)
        self._report.tick()
        return [summaries[number] for number in range(len(self._parts))]

    def _note_part(self, number: int, summary: Summary) -> None:
        work = Work(self._parts[number].num_bytes, sum(summary.num_documents), sum(summary.num_ids))
        self._report.finish_part(number, work)

    def _valid_below(self, summaries: Sequence[Summary]) -> int:
        """Return the hash below which documents go to validation: `valid_fraction` of all, if no side is empty.

        Otherwise the document whose hash is nearest changes sides, together with its duplicates. The result depends
        only on the hashes of all documents, so an interrupted build arrives at the same split.
        """
        wanted = math.ceil(self._plan.valid_fraction * 2.0**64)
        smallest = min((summary.hashes[0] for summary in summaries if summary.hashes), default=0)
        largest = max((summary.hashes[1] for summary in summaries if summary.hashes), default=0)
        if not wanted or smallest == largest or smallest < wanted <= largest:
            return wanted
        side = "validation" if wanted <= smallest else "training"
        self._say(
            f"no document's hash falls to {side} at a valid_fraction of {self._plan.valid_fraction}; "
            "the document whose hash is nearest goes there"
        )
        return smallest + 1 if wanted <= smallest else largest

    def _check_sources(self) -> None:
        """Raise `DataError` if a file is not what it was when the build began."""
        for file in self._plan.all_files:
            if not is_url(file.name) and describe_source(file.name, format=file.format) != file:
                self._is_hopeless = True
                raise DataError(f"{file.name}: was changed while it was read; start again")

    def _say_empty(self, summaries: Sequence[Summary]) -> None:
        num_documents = Counter[str]()
        for name, summary in zip(self._names, summaries, strict=True):
            num_documents[name] += sum(summary.num_documents)
        say_empty(self._plan.all_files, num_documents, self._say)

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
        """Write the shards that are not there; return all of them in order."""
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
            ids_by_bucket(job, side) if only is None else np.array([only.num_ids + 1]),
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
        begin, end = (self._num_train_parts, None) if plan.files_of(side) is plan.valid_files else (0, None)
        if plan.valid_files and side == TRAIN:
            end = self._num_train_parts
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


def _threads_a_task(slots: int, num_tasks: int) -> int:
    """Return more than one if there are fewer tasks than could be worked on."""
    return max(1, min(slots // max(1, num_tasks), worker_count(0)))


def _with_absolute_name(part: Part) -> Part:
    if is_url(part.source.name):
        return part
    return replace(part, source=replace(part.source, name=str(Path(part.source.name).absolute())))


def _sides_differ(summary: Summary, valid_below: int) -> bool:
    """Return whether another limit that `_valid_below` returned moves documents of a spool across."""
    low, high = sorted((summary.valid_below, valid_below))
    return any(low <= limit < high for limit in summary.hashes)


def _named(files: Sequence[SourceFile]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")
