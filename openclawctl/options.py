"""The keyword arguments of the client's operations, and the parameters made from them.

Owns how what a caller writes becomes an operation's `params`. Both clients use it. What is allowed
is judged by the same decoder that the daemon uses, so a mistake is named before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from openclawctl.wire.errors import InvalidRequest
from openclawctl.wire.operations import Op, decode_params
from openclawctl.wire.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawctl.wire.messages import Event

    Prompt = str | Iterable[int]
    """Text, or token ids that are taken as they are."""


class CompletionOptions(TypedDict, total=False):
    """Keywords of `generate` and `chat`. What is left out, or None, is the model's default.

    `n` asks for so many answers to the one prompt, each with a seed of its own; their prompt is
    computed and counted once.
    `temperature` 0 always takes the likeliest token; off are `top_k` 0, `typical_p` 1, `top_p` 1,
    `min_p` 0, `xtc_probability` 0, `mirostat` 0, `repeat_penalty` 1, `frequency_penalty` and
    `presence_penalty` 0, `dry_multiplier` 0. The same `seed` gives the same
    text. `logit_bias` maps token ids to what is added to their logits, or is a list of such pairs.
    With `ignore_eos` the model cannot end the text, with `min_tokens` not before so many tokens.
    `logprobs` asks for a record of each token (`choices[0].logprobs`, and in deltas),
    `top_logprobs` for so many likeliest ones in each. `priority` is `batch`, `normal` or
    `interactive`; after `deadline_s` seconds the request ends with `DeadlineExceeded`.
    `format` is what shape the answer must have, such as `{"type": "json_schema", "schema": {…}}`;
    docs/protocol.md has the others. `adapter` names one of the model's LoRAs. `app` and `session`
    are names for limits and reports; `app` is the client's unless it is given here. The model stays
    loaded for `keep_alive_s` seconds after the request, -1 is for ever; else as it is configured.
    """

    model: str | None
    n: int | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    temperature: float | None
    top_k: int | None
    typical_p: float | None
    top_p: float | None
    min_p: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    seed: int | None
    logit_bias: Mapping[int, float] | Iterable[Sequence[float]] | None
    ignore_eos: bool | None
    min_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    priority: str | None
    deadline_s: float | None
    format: Mapping[str, object] | None
    adapter: str | None
    app: str | None
    session: str | None
    keep_alive_s: float | None
    on_event: Callable[[Event], object] | None


class GenerateOptions(CompletionOptions, total=False):
    """What `generate` has beside them. With `echo` the text begins with the prompt; with `suffix`
    it is what belongs between the prompt and that, for models that can fill in."""

    suffix: str | None
    echo: bool | None


class ChatOptions(CompletionOptions, total=False):
    """What `chat` has beside them. `reasoning` is what becomes of what the model thinks first:
    `split` from the answer (the default), left in it `raw`, or switched `off`. `tools` are the
    functions that it may call, as OpenAI's chat completions have them, and `tool_choice` is `auto`
    (the default), `none`, `required`, or `{"name": …}` for the one that it must call."""

    reasoning: str | None
    tools: Iterable[Mapping[str, object]] | None
    tool_choice: str | Mapping[str, str] | None


def generate_params(
    prompt: Prompt, options: GenerateOptions, *, is_streamed: bool
) -> dict[str, Any]:
    is_ids = isinstance(prompt, Iterable) and not isinstance(prompt, str)
    given = list(prompt) if is_ids else prompt
    completion = _completion(options, is_streamed=is_streamed)
    return _checked(Op.GENERATE, {"prompt": given, **completion})


def chat_params(
    messages: Iterable[Mapping[str, Any]], options: ChatOptions, *, is_streamed: bool
) -> dict[str, Any]:
    raw = _completion(options, is_streamed=is_streamed)
    if (tools := options.get("tools")) is not None:
        raw["tools"] = _listed(tools)
    return _checked(Op.CHAT, {"messages": _listed(messages), **raw})


class EmbedOptions(TypedDict, total=False):
    """Keywords of `embed`: those of `generate` that have a meaning for vectors."""

    model: str | None
    priority: str | None
    deadline_s: float | None
    adapter: str | None
    app: str | None
    session: str | None
    keep_alive_s: float | None


def embed_params(texts: str | Iterable[str], options: EmbedOptions) -> dict[str, Any]:
    values = [texts] if isinstance(texts, str) else list(texts)
    return _checked(Op.EMBED, {"input": values, **options})


class ScoringOptions(TypedDict, total=False):
    """Keywords of `classify` and `rerank`: those of `generate` that have a meaning for scores."""

    model: str | None
    priority: str | None
    deadline_s: float | None
    app: str | None
    session: str | None


def classify_params(
    texts: str | Iterable[str], top_k: int | None, options: ScoringOptions
) -> dict[str, Any]:
    values = [texts] if isinstance(texts, str) else list(texts)
    return _checked(Op.CLASSIFY, {"input": values, "top_k": top_k, **options})


def rerank_params(
    query: str,
    documents: Iterable[str],
    options: ScoringOptions,
    *,
    top_n: int | None,
    return_documents: bool,
) -> dict[str, Any]:
    asked = {"query": query, "documents": list(documents), "top_n": top_n}
    return _checked(Op.RERANK, {**asked, "return_documents": return_documents, **options})


def tokenize_params(text: str, model: str | None, *, add_special: bool) -> dict[str, Any]:
    return _checked(Op.TOKENIZE, {"text": text, "model": model, "add_special": add_special})


def detokenize_params(tokens: Iterable[int], model: str | None) -> dict[str, Any]:
    return _checked(Op.DETOKENIZE, {"tokens": list(tokens), "model": model})


def usage_params(
    by: str | Iterable[str],
    *,
    since: str | float | datetime | None,
    until: str | float | datetime | None,
    sort: str | None,
    limit: int | None,
) -> dict[str, Any]:
    names = by.split(",") if isinstance(by, str) else list(by)
    raw = {"by": [name.strip() for name in names], "sort": sort, "limit": limit}
    return _checked(Op.USAGE, {**raw, **_bound("since", since), **_bound("until", until)})


def _bound(name: str, value: str | float | datetime | None) -> dict[str, float]:
    """A bound of a range: a duration before now, or a moment as ISO 8601 text, in this machine's
    time zone unless it says otherwise."""
    if value is None:
        return {}
    try:
        if isinstance(value, datetime):
            return {f"{name}_at": max(0.0, value.timestamp())}
        if isinstance(value, str) and "-" in value:
            return {f"{name}_at": max(0.0, _moment(value).timestamp())}
        return {f"{name}_s": parse_duration_s(value)}
    except ValueError as error:
        raise InvalidRequest(
            f"usage: {name}: {error}", hint="write a duration (7d) or a time (2026-10-25T14:00)"
        ) from None


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a duration nor a time") from None


def usage_rows_params(after_seq: int, limit: int | None) -> dict[str, Any]:
    return _checked(Op.USAGE_ROWS, {"after_seq": after_seq, "limit": limit})


def prune_params(older_than: str | float) -> dict[str, Any]:
    try:
        older_than_s = parse_duration_s(older_than)
    except ValueError as error:
        raise InvalidRequest(f"ledger.prune: older_than: {error}") from None
    return _checked(Op.LEDGER_PRUNE, {"older_than_s": older_than_s})


def key_params(
    name: str,
    *,
    role: str,
    tier: str | None,
    models: str | Iterable[str] | None,
    expires: str | float | None,
) -> dict[str, Any]:
    patterns = [models] if isinstance(models, str) else models
    raw = {
        "name": name,
        "role": role,
        "tier": tier,
        "models": None if patterns is None else list(patterns),
        "expires_s": _duration_s("keys.create: expires", expires),
    }
    return _checked(Op.KEYS_CREATE, raw)


def rotation_params(
    name: str, *, overlap: str | float, expires: str | float | None
) -> dict[str, Any]:
    raw = {
        "name": name,
        "overlap_s": _duration_s("keys.rotate: overlap", overlap),
        "expires_s": _duration_s("keys.rotate: expires", expires),
    }
    return _checked(Op.KEYS_ROTATE, raw)


def key_name_params(op: str, name: str) -> dict[str, Any]:
    return _checked(Op(op), {"name": name})


def pull_params(
    source: str,
    *,
    name: str | None,
    revision: str | None,
    sha256: str | None,
    replace: bool,
    unverified: bool,
) -> dict[str, Any]:
    raw = {"name": name, "revision": revision, "sha256": sha256}
    switches = {"replace": replace, "unverified": unverified}
    return _checked(Op.PULL, {"source": source, **raw, **switches})


def model_file_params(op: str, model: str) -> dict[str, Any]:
    return _checked(Op(op), {"model": model})


def _duration_s(what: str, value: str | float | None) -> float | None:
    try:
        return None if value is None else parse_duration_s(value)
    except ValueError as error:
        raise InvalidRequest(f"{what}: {error}") from None


def audit_params(
    since: str | float | None,
    *,
    principal: str | None,
    action: str | None,
    limit: int | None,
    after_seq: int | None,
) -> dict[str, Any]:
    try:
        since_s = None if since is None else parse_duration_s(since)
    except ValueError as error:
        raise InvalidRequest(f"audit: since: {error}") from None
    raw = {"principal": principal, "action": action, "limit": limit, "after_seq": after_seq}
    return _checked(Op.AUDIT, {"since_s": since_s, **raw})


def audit_verify_params(head: str | None) -> dict[str, Any]:
    return _checked(Op.AUDIT_VERIFY, {"head": head})


def insights_params(since: str | float, model: str | None, principal: str | None) -> dict[str, Any]:
    try:
        since_s = parse_duration_s(since)
    except ValueError as error:
        raise InvalidRequest(f"insights: since: {error}") from None
    return _checked(Op.INSIGHTS, {"since_s": since_s, "model": model, "principal": principal})


def _completion(options: CompletionOptions, *, is_streamed: bool) -> dict[str, Any]:
    raw: dict[str, Any] = {**options, "stream": is_streamed}
    raw.pop("on_event", None)
    stop, bias = raw.get("stop"), raw.get("logit_bias")
    if stop is not None:
        raw["stop"] = [stop] if isinstance(stop, str) else _listed(stop)
    if bias is not None:
        raw["logit_bias"] = _listed(bias.items() if isinstance(bias, Mapping) else bias)
    return raw


def _listed(values: Any) -> Any:
    """What is much like a list of maps, of pairs or of values, as the wire has it. Anything else as
    it is: what is wrong with it, the decoder says."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        return values
    return [_plain(each) for each in values]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _checked(op: Op, raw: dict[str, Any]) -> dict[str, Any]:
    """Raises `InvalidRequest` for values that are not allowed, `TypeError` for unknown keywords."""
    params, unknown = decode_params(op, raw)
    if unknown:
        raise TypeError(f"{op.value}() got an unexpected keyword argument {unknown[0]!r}")
    return params.encode()
