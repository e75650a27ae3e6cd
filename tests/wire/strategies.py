"""Hypothesis strategies for everything that goes over the wire."""

import json
from dataclasses import replace

from hypothesis import strategies as st

from openclawctl.wire import (
    chat,
    completion,
    fetching,
    formats,
    keys,
    results,
    sampling,
    scheduling,
    scoring,
    tokens,
    tools,
)
from openclawctl.wire import messages as m
from openclawctl.wire import operations as ops
from openclawctl.wire.errors import Code, Kind

# What UTF-8 can carry: half characters cannot be sent.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
some_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)
# What stands in one line: `str.isprintable()`.
lines = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=50)
ids = st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**40)
seconds = st.floats(0, m.LONGEST_S)
numbers = st.floats(allow_nan=False)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | numbers | texts | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(texts, inner, max_size=20),
    max_leaves=25,
)
maps = st.dictionaries(texts, json_values, max_size=6)
token_ids = st.lists(st.integers(0, tokens.MAX_TOKEN_ID), max_size=20)


def maybe(strategy):
    return st.none() | strategy


_token = {
    "token_id": st.integers(0, tokens.MAX_TOKEN_ID),
    "text": texts,
    "logprob": st.floats(tokens.LOWEST_LOGPROB, 0),
}
_likeliest = st.lists(st.builds(tokens.TokenLogprob, **_token), max_size=3)
logprobs = st.lists(st.builds(tokens.TokenLogprob, **_token, top=_likeliest), max_size=5)

tool_names = st.text("abz019_.-", min_size=1, max_size=20)
tool_calls = st.builds(tools.ToolCall, id=texts, name=tool_names, arguments=some_text)

hellos = st.builds(
    m.Hello,
    version=st.integers(1, 2**63 - 1),
    client=lines,
    key=maybe(texts),
    app=maybe(lines),
)
requests = st.builds(m.Request, id=ids, op=texts, params=maps)
cancels = st.builds(m.Cancel, id=ids)
client_messages = hellos | requests | cancels

welcomes = st.builds(
    m.Welcome,
    version=st.integers(1, 2**63 - 1),
    server=texts,
    principal=texts,
    limits=maps,
)
events = st.builds(m.Event, id=ids, kind=texts, data=maps)
deltas = st.builds(
    m.Delta,
    id=ids,
    index=ids,
    text=texts,
    reasoning=maybe(texts),
    tool_calls=maybe(st.lists(tool_calls, max_size=2)),
    token_ids=token_ids,
    embedding=maybe(st.binary(max_size=50)),
    logprobs=maybe(logprobs),
)
dones = st.builds(m.Done, id=ids, result=maps)
errors = st.builds(
    m.Error,
    id=maybe(ids),
    code=st.sampled_from([code.value for code in Code]) | texts,
    kind=st.sampled_from([kind.value for kind in Kind]) | texts,
    message=texts,
    hint=texts,
    retry_after_s=maybe(seconds),
)
goaways = st.builds(m.Goaway, reason=texts)
server_messages = welcomes | events | deltas | dones | errors | goaways


def _sampling_value(name):
    low, high = sampling.SAMPLING_RANGES[name]
    if name in sampling.SAMPLING_INTEGERS:
        return maybe(st.integers(int(low), int(high)))
    return maybe(st.floats(low, high))


def _asked_consistently(drawn):
    """`top_logprobs` is refused where `logprobs` is not asked for."""
    return drawn if drawn.logprobs else replace(drawn, top_logprobs=None)


samplings = st.builds(
    sampling.Sampling,
    **{name: _sampling_value(name) for name in sampling.SAMPLING_RANGES},
    ignore_eos=maybe(st.booleans()),
    logprobs=maybe(st.booleans()),
    logit_bias=maybe(
        st.dictionaries(st.integers(0, tokens.MAX_TOKEN_ID), st.floats(-1000, 1000), max_size=5)
    ),
).map(_asked_consistently)
_scheduling = {
    "priority": maybe(st.sampled_from(scheduling.PRIORITIES)),
    "deadline_s": maybe(st.floats(scheduling.MIN_DEADLINE_S, m.LONGEST_S)),
}
_keep_alive = {"keep_alive_s": maybe(st.just(-1.0) | st.floats(0, m.LONGEST_S))}
labels = st.text("abz 019_-ü日", min_size=1, max_size=20)
_labels = {"app": maybe(labels), "session": maybe(labels)}
_schemas = st.dictionaries(texts, st.integers() | texts, max_size=3).map(json.dumps)
output_formats = st.one_of(
    st.builds(formats.OutputFormat, st.just("json_object")),
    st.builds(formats.OutputFormat, st.just("json_schema"), _schemas),
    st.builds(formats.OutputFormat, st.sampled_from(["regex", "lark", "gbnf"]), texts),
)
_completion = {
    "format": maybe(output_formats),
    **_scheduling,
    **_keep_alive,
    **_labels,
    "model": maybe(texts),
    "adapter": maybe(texts),
    "max_tokens": maybe(st.integers(1, completion.MAX_TOKENS)),
    "n": st.integers(1, completion.MAX_CHOICES),
    "stop": st.lists(some_text, max_size=completion.MAX_STOP_STRINGS),
    "stream": st.booleans(),
    "dry_run": st.booleans(),
    "sampling": samplings,
}
file_names = st.from_regex(fetching.MODEL_FILE_NAME_PATTERN, fullmatch=True)
key_names = st.from_regex(keys.KEY_NAME_PATTERN, fullmatch=True)
chat_messages = st.builds(
    chat.ChatMessage,
    role=st.sampled_from(chat.CHAT_ROLES),
    content=texts,
    reasoning=texts,
    tool_calls=st.lists(tool_calls, max_size=2),
    tool_call_id=texts,
    name=texts,
)
model_params = st.builds(ops.ModelParams, model=maybe(texts))

tool_definitions = st.builds(
    tools.Tool,
    name=tool_names,
    description=texts,
    parameters=st.dictionaries(texts, st.integers(-(2**63), 2**63 - 1) | texts, max_size=3),
)


@st.composite
def chats_with_tools(draw, asked):
    """The same chat with tools, and with a choice that goes with them."""
    offered = draw(st.lists(tool_definitions, min_size=1, max_size=3, unique_by=lambda t: t.name))
    named = [tools.ToolChoice("required", tool.name) for tool in offered]
    plain = [tools.ToolChoice(mode) for mode in tools.TOOL_CHOICES]
    choice = draw(st.sampled_from(plain + named))
    shape = asked.format if choice.mode == "none" else None
    return replace(asked, tools=offered, tool_choice=choice, format=shape)


params = {
    ops.Op.PING: st.builds(ops.NoParams),
    ops.Op.STATUS: st.builds(ops.StatusParams, latency=st.booleans(), requests=st.booleans()),
    ops.Op.REQUESTS_CANCEL: st.builds(ops.RequestParams, request_id=texts),
    ops.Op.MODELS: st.builds(ops.NoParams),
    ops.Op.BUDGETS: st.builds(ops.NoParams),
    ops.Op.LOAD: model_params,
    ops.Op.UNLOAD: model_params,
    ops.Op.GENERATE: st.builds(
        completion.GenerateParams,
        prompt=texts | token_ids,
        echo=st.booleans(),
        suffix=maybe(texts),
        **_completion,
    ),
    ops.Op.CHAT: st.builds(
        completion.ChatParams,
        messages=st.lists(chat_messages, min_size=1, max_size=5),
        reasoning=st.sampled_from(completion.REASONING_MODES),
        **_completion,
    ).flatmap(lambda asked: st.just(asked) | chats_with_tools(asked)),
    ops.Op.EMBED: st.builds(
        ops.EmbedParams,
        input=st.lists(some_text, min_size=1, max_size=5),
        model=maybe(texts),
        **_scheduling,
        **_keep_alive,
        **_labels,
    ),
    ops.Op.RELOAD: st.builds(ops.NoParams),
    ops.Op.DRAIN: st.builds(ops.DrainParams, wait=st.booleans()),
    ops.Op.RESUME: st.builds(ops.NoParams),
    ops.Op.SHOW: st.builds(ops.ModelParams, model=maybe(texts)),
    ops.Op.WATCH: st.builds(ops.WatchParams, num_updates=maybe(st.integers(1, 2**40))),
    ops.Op.CLASSIFY: st.builds(
        scoring.ClassifyParams,
        input=st.lists(some_text, min_size=1, max_size=5),
        model=maybe(texts),
        top_k=maybe(st.integers(1, scoring.MAX_LABELS)),
        **_scheduling,
        **_keep_alive,
        **_labels,
    ),
    ops.Op.RERANK: st.builds(
        scoring.RerankParams,
        query=some_text,
        documents=st.lists(some_text, min_size=1, max_size=5),
        model=maybe(texts),
        top_n=maybe(st.integers(1, scoring.MAX_SCORED_TEXTS)),
        return_documents=st.booleans(),
        **_scheduling,
        **_keep_alive,
        **_labels,
    ),
    ops.Op.TOKENIZE: st.builds(
        ops.TokenizeParams, text=texts, model=maybe(texts), add_special=st.booleans()
    ),
    ops.Op.DETOKENIZE: st.builds(ops.DetokenizeParams, tokens=token_ids, model=maybe(texts)),
    ops.Op.AUDIT: st.builds(
        ops.AuditParams,
        since_s=maybe(seconds),
        principal=maybe(texts),
        action=maybe(texts),
        limit=st.integers(1, ops.MAX_AUDIT_ROWS),
        after_seq=maybe(ids),
    ),
    ops.Op.AUDIT_VERIFY: st.builds(
        ops.AuditVerifyParams, head=maybe(st.from_regex("[0-9]{1,18}:[0-9a-f]{64}", fullmatch=True))
    ),
    ops.Op.USAGE: st.builds(
        ops.UsageParams, by=st.sampled_from(ops.USAGE_GROUPS), since_s=maybe(seconds)
    ),
    ops.Op.WHOAMI: st.builds(ops.NoParams),
    ops.Op.PULL: st.builds(
        ops.PullParams,
        source=texts,
        name=maybe(file_names),
        revision=maybe(texts),
        sha256=maybe(st.from_regex("[0-9a-f]{64}", fullmatch=True)),
        replace=st.booleans(),
        unverified=st.booleans(),
    ),
    ops.Op.MODELS_REMOVE: st.builds(ops.ModelFileParams, model=file_names),
    ops.Op.MODELS_VERIFY: st.builds(ops.ModelFileParams, model=file_names),
    ops.Op.KEYS_CREATE: st.builds(
        ops.KeyCreateParams,
        name=key_names,
        role=texts,
        tier=maybe(texts),
        models=maybe(st.lists(some_text, min_size=1, max_size=3)),
        expires_s=maybe(st.floats(1, m.LONGEST_S)),
    ),
    ops.Op.KEYS_LIST: st.builds(ops.NoParams),
    ops.Op.KEYS_SHOW: st.builds(ops.KeyParams, name=key_names),
    ops.Op.KEYS_ROTATE: st.builds(
        ops.KeyRotateParams,
        name=key_names,
        overlap_s=seconds,
        expires_s=maybe(st.floats(1, m.LONGEST_S)),
    ),
    ops.Op.KEYS_REVOKE: st.builds(ops.KeyParams, name=key_names),
    ops.Op.USAGE: st.lists(
        st.sampled_from(ops.USAGE_GROUPS), min_size=1, max_size=9, unique=True
    ).flatmap(
        lambda by: st.builds(
            ops.UsageParams,
            by=st.just(by),
            since_s=maybe(seconds),
            until_at=maybe(seconds),
            sort=maybe(st.sampled_from([*by, *ops.USAGE_COLUMNS])),
            limit=maybe(st.integers(1, ops.MAX_USAGE_ROWS)),
        )
    ),
    ops.Op.USAGE_ROWS: st.builds(
        ops.UsageRowsParams,
        after_seq=st.integers(0, 2**62),
        limit=st.integers(1, ops.MAX_USAGE_PAGE),
    ),
    ops.Op.LEDGER_CHECK: st.builds(ops.NoParams),
    ops.Op.LEDGER_PRUNE: st.builds(ops.PruneParams, older_than_s=seconds),
    ops.Op.LEDGER_BACKUP: st.builds(ops.NoParams),
    ops.Op.INSIGHTS: st.builds(
        ops.InsightsParams,
        since_s=st.floats(0, ops.MAX_INSIGHTS_S),
        model=maybe(texts),
        principal=maybe(texts),
    ),
}

usages = st.builds(
    results.Usage,
    prompt_tokens=counts,
    cached_tokens=counts,
    completion_tokens=counts,
    counts=st.sampled_from(["exact", "estimated"]),
)
timings = st.builds(
    results.Timings, load_s=seconds, queue_s=seconds, ttft_s=maybe(seconds), total_s=seconds
)
filled_maps = st.dictionaries(texts, json_values, min_size=1, max_size=4)
choices = st.builds(
    results.Choice,
    index=counts,
    finish_reason=st.sampled_from([reason.value for reason in results.FinishReason]),
    text=maybe(texts),
    message=maybe(filled_maps),
    token_ids=token_ids,
)
results = st.builds(
    results.InferenceResult,
    request_id=texts,
    model=texts,
    usage=usages,
    timings=timings,
    choices=st.lists(choices, max_size=4),
    context=maps,
)
