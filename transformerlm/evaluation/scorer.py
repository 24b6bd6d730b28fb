"""Log-likelihoods of tokens: rows of ids, many at a time, each token with what comes before it in its row.

    row        ids      t0 t1 t2 t3 t4        a window of a text, or a context with what may follow it
               scored         ·  ×  ×         the last ones

Rows that begin alike, as a question with several answers, can be one *pack*, in which what they share is computed once:

    pack       the question │ answer A │ answer B │ answer C      each answer attends to the question and to itself,
               0 1 2 3 4 5  │ 6 7 8    │ 6 7      │ 6 7 8 9       and its positions go on from there

Packs of similar length are computed together, padded on the right, where causal attention does not see it. Logits are
made of the scored tokens only, some rows at a time. The host waits for the device once in `BATCHES_AT_A_TIME` batches.

The batch size changes the shapes of matrix products, hence the order of their sums and the last digits of float32. A
token's nats then move by some 1e-6; those of a text, summed in float64, by less than 1e-6 of the whole (measured on
20,000 tokens, batches of 1 and 16: at most 4e-6, and 2e-10 of it; in bfloat16 6e-2, and 1e-5 of it).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transformerlm.fast.chunked_loss import ChunkedLoss, chunk_rows_for
from transformerlm.models import TransformerLM
from transformerlm.models.attention import document_mask
from transformerlm.training.loss import cross_entropy
from transformerlm.utils.errors import DataError

BATCHES_AT_A_TIME = 8
"""Batches that are sorted by length among themselves, and computed before the host looks at the results."""

MOST_PAIRS = 1 << 28
"""Pairs of tokens in a batch, for each of which a mask has a boolean."""

Ids: TypeAlias = npt.NDArray[np.int64]


class Row(NamedTuple):
    """Ids of which the last ones are scored."""

    ids: Ids
    """(n + 1,): n inputs, and the last target."""
    first_scored: int
    """Place of the first input whose next id is scored; from there on all are."""

    @property
    def targets(self) -> Ids:
        """The ids that are scored."""
        return self.ids[self.first_scored + 1 :]


class Scored(NamedTuple):
    """What the model held of a row's targets."""

    nats: npt.NDArray[np.float64]
    """Minus the natural logarithm of the probability of each."""
    likeliest: npt.NDArray[np.bool_]
    """Whether each was the most likely token; empty if nobody asked."""


@dataclass(frozen=True)
class Pack:
    """Rows whose first `num_shared` ids are the same, laid out one after another behind those."""

    rows: Sequence[Row]
    num_shared: int = 0
    owner: int = 0
    """Number of what it belongs to, for whoever has it scored."""

    @property
    def length(self) -> int:
        """How many inputs there are."""
        return self.num_shared + sum(len(row.ids) - 1 - self.num_shared for row in self.rows)


def share_beginnings(rows: Sequence[Row], *, most_tokens: int, owner: int = 0) -> list[Pack]:
    """Return `rows`, in order, in as few packs of at most `most_tokens` inputs as share what all of them begin with."""
    shared = _common_beginning([row.ids[:-1] for row in rows])
    if shared == 0 or len(rows) == 1:
        return [Pack([row], owner=owner) for row in rows]
    packs: list[Pack] = []
    members: list[Row] = []
    length = shared
    for row in rows:
        own = len(row.ids) - 1 - shared
        if members and length + own > most_tokens:
            packs.append(Pack(members, shared, owner))
            members, length = [], shared
        members.append(row)
        length += own
    return [*packs, Pack(members, shared, owner)]


def _common_beginning(arrays: Sequence[Ids]) -> int:
    first, shortest = arrays[0], min(map(len, arrays))
    agree = np.ones(shortest, dtype=np.bool_)
    for other in arrays[1:]:
        agree &= first[:shortest] == other[:shortest]
    return shortest if agree.all() else int(agree.argmin())


@final
class Scorer:
    """A model that scores packs, `batch_size` at a time. Puts the model into evaluation mode."""

    def __init__(
        self, model: TransformerLM, *, batch_size: int, mask_after: int | None = None, likeliest: bool = False
    ) -> None:
        """With `mask_after`, an id, tokens of packs of one row do not attend across it, as in training that did so.

        With `likeliest` it is found for each target whether it was the most likely one.
        """
        self.model = model.eval()
        self.batch_size = batch_size
        self._device = model.token_embeddings.weight.device
        self._score = _nats_and_likeliest if likeliest else cross_entropy
        make_mask = None if mask_after is None else lambda ids_BT: document_mask(ids_BT, mask_after)
        self._loss = ChunkedLoss(model, chunk_rows=chunk_rows_for(self._device), make_mask=make_mask)

    def score(self, packs: Iterable[Pack]) -> Iterator[tuple[Pack, list[Scored]]]:
        """Yield each pack, in order, with what the model held of each of its rows; only some packs are in memory.

        A row may be empty of scored targets; one of more inputs than the model's context is a `ConfigError`. Raises
        `DataError` for an id outside the model's vocabulary.
        """
        packs = iter(packs)
        while pool := list(islice(packs, self.batch_size * BATCHES_AT_A_TIME)):
            yield from zip(pool, self._score_pool(pool), strict=True)

    @torch.inference_mode()
    def _score_pool(self, pool: list[Pack]) -> list[list[Scored]]:
        order = sorted(range(len(pool)), key=lambda number: -pool[number].length)  # stable: the longest first
        parts, first = [], 0
        while first < len(order):
            last = first + self._rows_for(pool[order[first]])
            parts.append(self._run([pool[number] for number in order[first:last]]))
            first = last
        found_KN = torch.cat(parts, dim=-1).cpu().numpy()  # here alone the host waits
        scored: list[list[Scored]] = [[] for _ in pool]
        place = 0
        for number in order:
            for row in pool[number].rows:
                end = place + len(row.targets)
                likeliest = found_KN[1, place:end] > 0 if len(found_KN) > 1 else np.empty(0, np.bool_)
                scored[number].append(Scored(found_KN[0, place:end].astype(np.float64), likeliest))
                place = end
        return scored

    def _rows_for(self, longest: Pack) -> int:
        """Return how many packs to compute together; the mask of long ones would take too much memory."""
        return min(self.batch_size, max(1, MOST_PAIRS // max(1, longest.length) ** 2))

    def _run(self, packs: list[Pack]) -> Tensor:
        """Return what is found of all targets of a batch, one pack after another, (K, N), on the device."""
        batch = _lay_out(packs, vocab_size=self.model.vocab_size)
        positions = segments = mask = None
        if any(len(pack.rows) > 1 for pack in packs):
            positions, segments = self._send(batch.positions), self._send(batch.segments)
            mask = _attend_within_rows(segments)
        found = self._loss.score(
            self._score,
            self._send(batch.ids),
            self._send(batch.places),
            self._send(batch.targets),
            token_positions=positions,
            mask=mask,
        )
        return torch.atleast_2d(found)

    def _send(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":  # copied while the device still computes: the host need not wait
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _nats_and_likeliest(logits: Tensor, targets: Tensor) -> Tensor:
    nats = cross_entropy(logits, targets)
    return torch.stack((nats, (logits.argmax(-1) == targets).to(nats.dtype)))


class _Layout(NamedTuple):
    """A batch of B packs, padded to T inputs, with N targets in all."""

    ids: Ids
    positions: Ids
    segments: Ids
    """0 for what is shared, and then the number of the row from 1 on; -1 for padding."""
    places: Ids
    """For each target, where in the flattened ids the one before it is."""
    targets: Ids


def _lay_out(packs: list[Pack], *, vocab_size: int) -> _Layout:
    length = max(pack.length for pack in packs)
    ids = np.zeros((len(packs), length), dtype=np.int64)
    positions, segments = np.zeros_like(ids), np.full_like(ids, -1)
    places, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, pack in enumerate(packs):
        shared = end = pack.num_shared
        ids[number, :shared] = pack.rows[0].ids[:shared]
        positions[number, :shared] = np.arange(shared)
        segments[number, :shared] = 0
        for segment, row in enumerate(pack.rows, start=1):
            begin, num_inputs = end, len(row.ids) - 1
            end = begin + num_inputs - shared
            ids[number, begin:end] = row.ids[shared:-1]
            positions[number, begin:end] = np.arange(shared, num_inputs)
            segments[number, begin:end] = segment
            inputs = np.arange(row.first_scored, num_inputs)
            places.append(number * length + np.where(inputs < shared, inputs, inputs - shared + begin))
            targets.append(row.targets)
    layout = _Layout(ids, positions, segments, np.concatenate(places), np.concatenate(targets))
    for array in (layout.ids, layout.targets):
        if array.size and not 0 <= array.min() <= array.max() < vocab_size:
            raise DataError(
                f"there are ids from {array.min()} to {array.max()}, but the model's vocabulary ends at "
                f"{vocab_size - 1}; use data made with the tokenizer of the checkpoint"
            )
    return layout


def _attend_within_rows(segments_BT: Tensor) -> Tensor:
    """Return the mask (B, 1, T, T), True = attend, in which each row of a pack sees what is shared, and itself."""
    places_T = torch.arange(segments_BT.shape[-1], device=segments_BT.device)
    keys_B1T, queries_BT1 = segments_BT.unsqueeze(-2), segments_BT.unsqueeze(-1)
    visible_BTT = (keys_B1T == queries_BT1) | (keys_B1T == 0)
    return (visible_BTT & (places_T.unsqueeze(-1) >= places_T)).unsqueeze(1)
