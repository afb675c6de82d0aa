import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.masks.rle import check_lengths, decode_counts, encode_rles


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from([1, 700]))
def test_decoded_lengths_are_those_that_were_encoded(pixels: list[bool], repeats: int) -> None:
    column = np.repeat(np.array(pixels, bool), repeats)[:, None]
    lengths = decode_counts(encode_rles(column[None])[0])
    assert np.array_equal(np.repeat(np.arange(len(lengths)) % 2 == 1, lengths), column[:, 0])
    check_lengths(lengths, (len(column), 1))


def test_invalid_lengths_are_refused() -> None:
    for lengths in ([-1, 25], [23], []):
        with pytest.raises(ValueError, match="run length"):
            check_lengths(np.array(lengths, np.int64), (4, 6))
