"""`app` and `session` of a request: what they may be, and that nothing is lost on the way."""

import pytest

from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.labels import LABELS, MAX_LABEL_CHARS
from openclawctl.wire.operations import Op, decode_params

REQUESTS = {
    Op.GENERATE: {"prompt": "x"},
    Op.CHAT: {"messages": [{"role": "user", "content": "x"}]},
    Op.EMBED: {"input": ["x"]},
    Op.CLASSIFY: {"input": ["x"]},
    Op.RERANK: {"query": "x", "documents": ["x"]},
}


@pytest.mark.parametrize("op", list(REQUESTS))
def test_what_computes_takes_both(op):
    params, unknown = decode_params(op, {**REQUESTS[op], "app": "billing", "session": "Nr. 7"})
    assert (params.app, params.session, unknown) == ("billing", "Nr. 7", [])
    assert params.encode().items() >= {"app": "billing", "session": "Nr. 7"}.items()
    plain, _ = decode_params(op, REQUESTS[op])
    assert (plain.app, plain.session) == (None, None)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("label", ["", "two\nlines", "\x1b[31m", "x" * (MAX_LABEL_CHARS + 1)])
def test_what_would_spoil_a_line_is_refused(name, label):
    with pytest.raises(InvalidRequest, match=name):
        decode_params(Op.EMBED, {"input": ["x"], name: label})
