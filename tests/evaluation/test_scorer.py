"""Log-likelihoods of tokens against a forward pass for each of them."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformerlm.evaluation import scorer as scorer_module
from transformerlm.evaluation.held_out import rows_of
from transformerlm.evaluation.scorer import Pack, Row, Scored, Scorer, share_prefixes
from transformerlm.fast.chunked_loss import ChunkedLoss
from transformerlm.models import TransformerLM
from transformerlm.models.attention import document_mask
from transformerlm.training.data import validation_windows
from transformerlm.utils.errors import ConfigError, DataError

CONTEXT = 12
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
"""Float32: products of other shapes are summed in another order."""


def nats_of(model: TransformerLM, before: Sequence[int], token: int) -> float:
    """Return what a forward pass of its own says of a token."""
    with torch.inference_mode():
        return -model(torch.tensor([list(before)]))[0, -1].log_softmax(-1)[token].item()


def oracle(model: TransformerLM, row: Row) -> list[float]:
    ids = row.ids.tolist()
    return [nats_of(model, ids[: place + 1], ids[place + 1]) for place in range(row.first_scored, len(ids) - 1)]


def draw_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 320, count)


def scored(model: TransformerLM, packs: Sequence[Pack], batch_size: int = 4, **settings: object) -> list[list[Scored]]:
    return [found for _, found in Scorer(model, batch_size=batch_size, **settings).score(packs)]  # type: ignore[arg-type]


def test_rows_of_any_length_are_scored_as_by_a_pass_for_each_token(make_model: Callable[..., TransformerLM]) -> None:
    model = make_model()
    rows = [
        Row(draw_ids(length, length), first) for length, first in ((13, 0), (2, 0), (9, 5), (13, 11), (5, 4), (4, 1))
    ]
    found = scored(model, [Pack([row]) for row in rows])
    for row, [one] in zip(rows, found, strict=True):
        assert one.nats.dtype == np.float64
        np.testing.assert_allclose(one.nats, oracle(model, row), **CLOSE)


def test_stride_one_gives_each_token_all_the_context_there_is(make_model: Callable[..., TransformerLM]) -> None:
    model, ids = make_model(), draw_ids(40)
    rows = list(rows_of(ids, context_length=CONTEXT, stride=1))
    found = np.concatenate([one.nats for [one] in scored(model, [Pack([row]) for row in rows])])
    expected = [nats_of(model, ids[max(0, t - CONTEXT) : t], ids[t]) for t in range(1, len(ids))]
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_stride_of_the_context_is_the_loss_of_chunks(make_model: Callable[..., TransformerLM]) -> None:
    model, ids = make_model(), draw_ids(3 * CONTEXT + 6)
    found = scored(model, [Pack([row]) for row in rows_of(ids, context_length=CONTEXT, stride=CONTEXT)])
    expected = []
    for begin in range(0, len(ids) - 1, CONTEXT):
        chunk = torch.from_numpy(ids[begin : begin + CONTEXT + 1])
        logits = model(chunk[None, :-1])[0]
        expected += torch.nn.functional.cross_entropy(logits, chunk[1:], reduction="none").tolist()
    np.testing.assert_allclose(np.concatenate([one.nats for [one] in found]), expected, **CLOSE)


def test_validation_in_training_has_the_same_loss(make_model: Callable[..., TransformerLM]) -> None:
    model, ids = make_model(), draw_ids(4 * CONTEXT + 1)
    batches = validation_windows(ids, windows=4, batch_size=3, context_length=CONTEXT, device=torch.device("cpu"))
    loss = ChunkedLoss(model, chunk_rows=7).eval()
    with torch.no_grad():
        in_training = sum(loss(inputs, targets).item() for inputs, targets in batches)
    found = scored(model, [Pack([row]) for row in rows_of(ids, context_length=CONTEXT, stride=CONTEXT)])
    assert sum(one.nats.sum() for [one] in found) == pytest.approx(in_training, rel=1e-6)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_shared=st.integers(0, 6),
    ends=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    scored_ids=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_what_rows_share_is_computed_once_and_changes_nothing(
    num_shared: int, ends: list[int], scored_ids: int, seed: int, make_model: Callable[..., TransformerLM]
) -> None:
    model, beginning = make_model(), draw_ids(num_shared, seed)
    rows = []
    for number, length in enumerate(ends):
        ids = np.concatenate((beginning, draw_ids(length + 1, seed + number)))
        rows.append(Row(ids, max(0, len(ids) - 1 - scored_ids)))
    packs = share_prefixes(rows, max_tokens=CONTEXT, owner=3)
    assert [row for pack in packs for row in pack.rows] == rows
    assert all(pack.owner == 3 for pack in packs)
    assert all(pack.length <= CONTEXT for pack in packs)
    other = Pack([Row(draw_ids(CONTEXT + 1), 0)])  # a batch holds packs of both kinds
    found = [one for several in scored(model, [*packs, other])[:-1] for one in several]
    for row, one in zip(rows, found, strict=True):
        np.testing.assert_allclose(one.nats, oracle(model, row), **CLOSE)


def test_sharing_is_once_for_a_pack_of_bounded_size() -> None:
    beginning = draw_ids(5)
    rows = [Row(np.append(beginning, [number, 1, 2, 3]), 4) for number in range(300, 305)]
    packs = share_prefixes(rows, max_tokens=CONTEXT)
    assert [len(pack.rows) for pack in packs] == [2, 2, 1]
    assert [pack.length for pack in packs] == [11, 11, 8]
    same = [Row(beginning, 2)] * 3
    [pack] = share_prefixes(same, max_tokens=CONTEXT)
    assert pack.length == 4


def test_the_likeliest_token_is_known(make_model: Callable[..., TransformerLM]) -> None:
    model, ids = make_model(), draw_ids(8)
    likeliest = model(torch.from_numpy(ids[None])).argmax(-1)[0, -1].item()
    rows = [Row(np.append(ids, [token]), 6) for token in (likeliest, (likeliest + 1) % 320)]
    found = scored(model, share_prefixes(rows, max_tokens=CONTEXT), find_greedy=True)
    assert [one.is_greedy[-1] for several in found for one in several] == [True, False]
    assert scored(model, [Pack(rows[:1])])[0][0].is_greedy.size == 0


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_batch_size_changes_nothing(batch_size: int, make_model: Callable[..., TransformerLM]) -> None:
    model = make_model()
    packs = [Pack([row]) for row in rows_of(draw_ids(500), context_length=CONTEXT, stride=5)]
    expected = sum(one.nats.sum() for [one] in scored(model, packs, 7))
    assert sum(one.nats.sum() for [one] in scored(model, packs, batch_size)) == pytest.approx(expected, rel=1e-6)


def test_the_host_looks_once_in_many_batches(
    make_model: Callable[..., TransformerLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "BATCHES_PER_POOL", 5)
    looks, exact = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: looks.append(1) or exact(self))
    packs = [Pack([row]) for row in rows_of(draw_ids(200), context_length=CONTEXT, stride=5)]
    batches = -(-len(packs) // 2)
    scored(make_model(), packs, 2)
    assert len(looks) == -(-batches // 5)


def test_a_mask_keeps_attention_inside_documents(make_model: Callable[..., TransformerLM]) -> None:
    model, ids = make_model(), draw_ids(CONTEXT + 1)
    ids[4] = ids[9] = 319
    row = Row(ids, 0)
    [[found]] = scored(model, [Pack([row])], mask_after=319)
    inputs = torch.from_numpy(ids[None, :-1])
    logits = model(inputs, mask=document_mask(inputs, 319))[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none")
    np.testing.assert_allclose(found.nats, expected.detach(), **CLOSE)
    assert not np.allclose(found.nats, scored(model, [Pack([row])])[0][0].nats)


def test_long_packs_are_computed_in_smaller_batches(
    make_model: Callable[..., TransformerLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    packs = [Pack([row]) for row in rows_of(draw_ids(60), context_length=CONTEXT, stride=4)]
    expected = [one.nats for [one] in scored(model, packs)]
    monkeypatch.setattr(scorer_module, "MAX_PAIRS", 2 * CONTEXT**2)
    rows, exact = [], model.hidden_states
    monkeypatch.setattr(model, "hidden_states", lambda ids, *a, **k: rows.append(len(ids)) or exact(ids, *a, **k))
    for found, one in zip(scored(model, packs), expected, strict=True):
        np.testing.assert_allclose(found[0].nats, one, **CLOSE)
    assert max(rows) == 2


def test_what_the_model_cannot_take_is_refused(make_model: Callable[..., TransformerLM]) -> None:
    with pytest.raises(DataError, match="ids from 5 to 320, but the model's vocabulary ends at 319"):
        scored(make_model(), [Pack([Row(np.array([5, 320, 7]), 0)])])
    with pytest.raises(DataError, match="vocabulary ends at 319"):
        scored(make_model(), [Pack([Row(np.array([5, 6, 320]), 0)])])
    with pytest.raises(ConfigError, match="13 positions asked for, but the model has 12"):
        scored(make_model(), [Pack([Row(draw_ids(14), 0)])])
