"""Windows over a stream: each id is scored once, with as much context as was promised."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.training.data import validation_windows
from transformerlm.training.scoring import SlidingWindows, bits_per_byte, perplexity
from transformerlm.utils.errors import ConfigError


@given(num_ids=st.integers(0, 60), context=st.integers(1, 12), data=st.data())
def test_every_id_but_the_first_is_scored_once_with_context(num_ids: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = SlidingWindows(num_ids, context, stride)
    assert len(list(windows)) == len(windows)
    scored = []
    for number, span in enumerate(windows):
        assert span.begin == number * stride
        assert span.end - span.begin == context or number == len(windows) - 1
        for place in range(span.first_scored, span.end - span.begin):
            target = span.begin + place + 1
            scored.append(target)
            assert place + 1 >= min(context - stride + 1, target)  # that many ids come before it in its window
    assert scored == list(range(1, num_ids))
    assert windows.num_full == sum(span.end - span.begin == context for span in windows)
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_would_leave_ids_out_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=f"stride must be from 1 to the context of 8 tokens.*got {stride}"):
        SlidingWindows(100, 8, stride)


def test_validation_in_training_takes_windows_that_only_touch() -> None:
    ids = np.arange(100, dtype=np.uint16)
    [(inputs, targets)] = validation_windows(
        ids, windows=4, batch_size=8, context_length=9, device=torch.device("cpu")
    )  # fmt: skip
    windows = SlidingWindows(100, 9, 9)
    assert windows.num_full == 11
    spans = [windows[number] for number in (0, 2, 5, 8)]  # spread evenly
    assert inputs.tolist() == [list(range(span.begin, span.end)) for span in spans]
    assert targets.tolist() == [list(range(span.begin + 1, span.end + 1)) for span in spans]


def test_units() -> None:
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert math.isfinite(perplexity(1e6))
    assert bits_per_byte(10 * math.log(4), 5) == pytest.approx(4)
