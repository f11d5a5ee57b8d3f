"""How recordings are cut and windows smoothed, against plain descriptions of both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mtlser.inference.hearing import Windows, WindowsError, equal_parts, window_spans
from jax_mtlser.inference.recognition import Piece, Scores, Smoother, mean_scores


@given(first=st.integers(0, 50), length=st.integers(1, 300), window=st.integers(1, 60), data=st.data())
def test_windows_cover_a_segment_at_a_constant_hop(first, length, window, data):
    hop = data.draw(st.integers(1, window))
    last = first + length
    spans = list(window_spans(first, last, window, hop))
    assert {end - start for start, end in spans} == {min(window, length)}
    assert spans[0][0] == first
    assert spans[-1][1] == last
    steps = np.diff([start for start, _ in spans])
    assert all(steps[:-1] == hop)
    assert all((steps > 0) & (steps <= hop))
    # Without gaps, because no hop is longer than a window.
    assert set(range(first, last)) == {frame for start, end in spans for frame in range(start, end)}


@given(first=st.integers(0, 50), length=st.integers(1, 300), longest=st.integers(1, 60))
def test_parts_are_equal_and_the_fewest(first, length, longest):
    spans = list(equal_parts(first, first + length, longest))
    sizes = [end - start for start, end in spans]
    assert [frame for start, end in spans for frame in range(start, end)] == list(range(first, first + length))
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= longest
    assert len(spans) == -(-length // longest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 3.0, "hop": 4.0}, "hop is 4 s; it must be greater than 0 and at most the window's 3 s"),
        ({"seconds": 3.0, "hop": 0.0}, "hop is 0 s"),
        ({"seconds": 0.0, "hop": 0.0}, "hop is 0 s"),
        ({"seconds": float("nan"), "hop": 1.0}, "hop is 1 s"),
        ({"seconds": 3.0, "hop": 1.0, "smooth": 2}, "smooth is 2; it must be an odd number"),
        ({"seconds": 3.0, "hop": 1.0, "smooth": -1}, "smooth is -1"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(values, message):
    with pytest.raises(WindowsError, match=message):
        Windows(**values)


@given(
    shares=st.lists(st.none() | st.floats(0, 1, width=32), min_size=1, max_size=12),
    reach=st.integers(0, 4),
)
def test_smoothing_is_a_centred_moving_average_of_what_was_judged(shares, reach):
    smoother = Smoother(2 * reach + 1)
    told = []
    for number, share in enumerate(shares):
        said = "silent" if share is None else Scores(emotion=np.float32([share, 1 - share]), transcript=str(number))
        told += smoother.add(Piece(start=float(number), end=number + 1.0), said)
        assert len(told) == max(0, number + 1 - reach), "a window waits for those behind it and no longer"
    told += smoother.end()
    assert [piece.start for piece, _ in told] == list(range(len(shares)))
    for number, (_, said) in enumerate(told):
        if shares[number] is None:
            assert said == "silent"
            continue
        around = [s for s in shares[max(0, number - reach) : number + reach + 1] if s is not None]
        np.testing.assert_allclose(said.emotion[0], np.mean(around), atol=1e-6)
        assert said.transcript == str(number)


def test_parts_count_by_their_length_and_transcripts_follow_each_other():
    parts = [Scores(emotion=np.float32([1, 0]), transcript=text) for text in ("A B", "", "C")]
    parts[2] = Scores(emotion=np.float32([0, 1]), transcript="C")
    mean = mean_scores(parts, [1.0, 1.0, 2.0])
    assert mean.emotion.tolist() == [0.5, 0.5]
    assert mean.transcript == "A B C"
    assert mean.gender is None
