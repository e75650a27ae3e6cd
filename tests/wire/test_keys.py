"""Parameters of the operations on API keys, and that no `repr` shows a key."""

import pytest

from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.messages import Hello, encode
from openclawctl.wire.operations import Op, decode_params


@pytest.mark.parametrize("name", ["", "two words", "-x", "../x", "x" * 65, "a\n", "é"])
@pytest.mark.parametrize("op", [Op.KEYS_CREATE, Op.KEYS_SHOW, Op.KEYS_ROTATE, Op.KEYS_REVOKE])
def test_names_are_words(op, name):
    with pytest.raises(InvalidRequest, match="name"):
        decode_params(op, {"name": name, "role": "user"})


@pytest.mark.parametrize(
    "wrong", [{"models": [""]}, {"models": []}, {"expires_s": 0}, {"role": None}, {"tier": 1}]
)
def test_what_a_key_may_not_be_given(wrong):
    with pytest.raises(InvalidRequest):
        decode_params(Op.KEYS_CREATE, {"name": "ci", "role": "user", **wrong})


def test_a_rotation_overlaps_a_day_and_can_be_at_once():
    assert decode_params(Op.KEYS_ROTATE, {"name": "ci"})[0].overlap_s == 86_400
    assert decode_params(Op.KEYS_ROTATE, {"name": "ci", "overlap_s": 0})[0].overlap_s == 0


def test_the_key_of_a_hello_is_sent_and_not_shown():
    hello = Hello(1, "c", key="ocl_secret")
    assert "ocl_secret" not in repr(hello)
    assert encode(hello)["key"] == "ocl_secret"
    assert hello != Hello(1, "c", key="ocl_other")
