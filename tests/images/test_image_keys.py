"""The fast look at many image keys refuses exactly what the careful look at one refuses."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labelstore.errors import RejectedInput
from labelstore.images import check_key, check_keys

KEYS = st.text(st.sampled_from("ab./\\\0\n\u00e9\ud800"), max_size=6) | st.text(max_size=3)


def is_refused(check) -> bool:
    try:
        check()
    except RejectedInput:
        return True
    return False


@given(st.lists(KEYS, max_size=4))
@example(["a/b.jpg", "x" * 256])
@example(["a/.hidden.jpg", "b/..c"])
@example(["a\n../b", "c"])
@example([""])
def test_many_keys_are_refused_as_one_is(keys):
    slowly = any(is_refused(lambda key=key: check_key(key)) for key in keys)
    assert is_refused(lambda: check_keys(keys)) == slowly


def test_a_long_key_of_few_characters_is_refused():
    with pytest.raises(RejectedInput, match="255"):
        check_keys(["\u00e9" * 200])
