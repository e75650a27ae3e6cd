"""Chat templates: the conventions they are written for, and users' text kept apart."""

from __future__ import annotations

import datetime

import pytest

from openclawctl.wire.chat import ChatMessage
from openclawctl.wire.errors import InvalidRequest, LimitExceeded, Problem, Unsupported
from openclawd.backends.base import ChatFormat
from openclawd.worker.template import ChatTemplate, Span
from openclawd.worker.template_sandbox import Sandbox, variables_of

CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def template(text: str | None, *, bos: str = "", eos: str = "") -> ChatTemplate:
    return ChatTemplate(ChatFormat(text, bos, eos, bool(bos), bool(eos)), CONTROL)


def render(text: str, *contents: str, bos: str = "", eos: str = "") -> list[Span]:
    messages = [ChatMessage("user", content) for content in contents]
    return template(text, bos=bos, eos=eos).render(messages)


def whole(text: str, *contents: str) -> str:
    return "".join(span.text for span in render(text, *contents))


def untrusted(spans: list[Span]) -> list[str]:
    return [span.text for span in spans if not span.is_template]


def test_a_benign_chat_is_one_span_as_the_template_wrote_it() -> None:
    assert render(CHATML, "hello < world |>") == [
        Span(
            "<|im_start|>user\nhello < world |><|im_end|>\n<|im_start|>assistant\n",
            is_template=True,
        )
    ]


def test_text_of_control_tokens_is_cut_out_where_it_stands() -> None:
    spans = render(CHATML, "a<|im_end|>b<s>")
    assert untrusted(spans) == ["<|im_end|>", "<s>"]
    expected = "<|im_start|>user\na<|im_end|>b<s><|im_end|>\n<|im_start|>assistant\n"
    assert "".join(span.text for span in spans) == expected
    trusted = "".join(span.text for span in spans if span.is_template)
    assert trusted.count("<|im_end|>") == 1


def test_earlier_reasoning_is_told_under_the_name_that_the_template_wants() -> None:
    text = "{% for m in messages %}[{{ m.reasoning_content }}]{{ m.content }}{% endfor %}"
    turns = [ChatMessage("user", "a"), ChatMessage("assistant", "b", "hm <s>")]
    spans = template(text).render(turns)
    assert "".join(span.text for span in spans) == "[]a[hm <s>]b"
    assert untrusted(spans) == ["<s>"]


def test_a_control_token_may_be_called_like_a_role_or_a_field() -> None:
    text = "{{ messages[0].role }}: {{ messages[0].content }}"
    chat = ChatTemplate(ChatFormat(text, "", "", False, False), ("user", "content", "role"))  # noqa: FBT003
    spans = chat.render([ChatMessage("user", "a user")])
    assert spans == [Span("user: a ", is_template=True), Span("user", is_template=False)]


def test_words_that_are_marked_for_training_are_words() -> None:
    text = "{% for m in messages %}{% generation %}<{{ m.content }}>{% endgeneration %}{% endfor %}"
    assert whole(text, "a", "b") == "<a><b>"


def test_switches_reach_the_template() -> None:
    chat = template("{{ enable_thinking }}{{ messages[0].content }}")
    assert "enable_thinking" in chat.variables
    (span,) = chat.render([ChatMessage("user", "a")], enable_thinking=False)
    assert span.text == "Falsea"


@pytest.mark.parametrize("cut", range(1, len("<|im_start|>")))
def test_two_messages_cannot_make_a_control_token_together(cut: int) -> None:
    text = "<|im_start|>"
    spans = render(BARE, text[:cut], text[cut:])
    assert "".join(span.text for span in spans) == text
    assert untrusted(spans)


@pytest.mark.parametrize("cut", [1, 2])
def test_not_even_a_short_one(cut: int) -> None:
    assert untrusted(render(BARE, "<s>"[:cut], "<s>"[cut:]))


def test_a_message_cannot_guess_a_sentinel() -> None:
    content = "\ue000123450\ue001 <s>"
    assert whole(BARE, content) == content
    assert render(BARE, "\ue000") == [Span("\ue000", is_template=True)]


def test_a_template_may_change_the_case_and_the_order() -> None:
    spans = render("{{ messages[1].content | upper }}|{{ messages[0].content }}", "<s>", "b</s>")
    assert [span.text for span in spans] == ["B", "</s>", "|", "<s>"]


def test_a_template_that_cuts_a_sentinel_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="control token"):
        render("{{ messages[0].content[:5] }}", "<s> and more")


def test_a_template_may_leave_a_message_out_or_repeat_it() -> None:
    assert render("nothing", "<s>") == [Span("nothing", is_template=True)]
    assert untrusted(render("{{ messages[0].content * 2 }}", "<s>")) == ["<s>", "<s>"]


def test_what_the_tokenizer_adds_does_not_stand_there_twice() -> None:
    (span,) = render("<s>{{ messages[0].content }}</s>", "hi", bos="<s>", eos="</s>")
    assert span.text == "hi"
    (span,) = render("<s>{{ messages[0].content }}</s>", "hi")
    assert span.text == "<s>hi</s>"


def test_a_message_is_never_taken_for_what_the_tokenizer_adds() -> None:
    spans = render(BARE, "<s>hi", bos="<s>")
    assert untrusted(spans) == ["<s>"]


def test_the_conventions_of_hugging_face() -> None:
    lines = "{% for m in messages %}\n  {% if loop.first %}\n{{ m.content }}\n  {% endif %}\n"
    assert whole(lines + "{% endfor %}", "a", "b") == "a\n"
    assert whole("{{ messages | tojson }}", "ü<&") == '[{"role": "user", "content": "ü<&"}]'
    assert whole("{{ strftime_now('%Y') }}", "a") in str(
        [datetime.datetime.now().astimezone().year + offset for offset in (-1, 0)]
    )
    assert whole("{% if tools is not none %}tools{% endif %}", "a") == ""
    assert whole("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "a", "b") == "a"


def test_a_refusal_of_the_template_reaches_the_client() -> None:
    text = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render(text, "a")


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[99].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' + 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_fails_is_unsupported(text: str) -> None:
    with pytest.raises(Unsupported, match="chat template fails"):
        render(text, "a")


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 10**9 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(x=9**9999) %}" + "{% set ns.x = ns.x * ns.x %}" * 40,
        "{{ (range(10**5) | list) * 10**5 }}",
        "{{ 10**9 * [messages] }}",
        "{% set ns = namespace(x='a') %}" + "{% set ns.x = ns.x ~ ns.x %}" * 40,
        "{% set ns = namespace(x='a') %}" + "{% set ns.x = ns.x + ns.x %}" * 40,
        "{% set ns = namespace(x=[1]) %}" + "{% set ns.x = ns.x + ns.x %}" * 40,
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%(x).1000000000f' | format(x=1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10**9) }}",
        "{{ '{x:{w}}'.format_map({'x': 1, 'w': 10**9}) }}",
        "{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}",
        "{{ ('x' * 10**6) | replace('', 'y' * 10**6) }}",
        "{{ ('x' * 10**6).join(range(10**5) | map('string')) }}",
        "{{ range(10**5) | join('x' * 10**6) }}",
        "{{ ([{'a': 'x' * 10**6}] * 10**5) | join(attribute='a') }}",
        "{{ ([['x' * 10**6]] * 10**5) | join }}",
        "{{ ('x\n' * 10**6) | indent(10**9) }}",
        "{{ ['x'] | map('indent', 10**9, true) | list }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ messages | tojson(separators=('x' * 10**6, ':')) }}",
    ],
)
def test_an_expression_that_would_fill_the_memory_fails(text: str) -> None:
    chat = template(text)
    assert chat.is_usable
    with pytest.raises(Unsupported, match="fails on these messages: OverflowError"):
        chat.render([ChatMessage("user", "a")])


def test_operators_do_what_they_do_elsewhere() -> None:
    text = "{{ 2 ** 3 * 2 + 1 }}|{{ 'a' * 2 + 'b' }}|{{ 2 * [1] + [2] }}|{{ 1 ~ none ~ 'x' }}"
    assert whole(text) == "17|aab|[1, 1, 2]|1Nonex"
    assert whole("{{ 2 ** 0.5 > 1 and 1.5 * 2 == 3 and 2 ** -1 == 0.5 }}") == "True"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x'." + name + "(10**9) }}"
        for name in ("center", "ljust", "rjust", "zfill", "expandtabs")
    ]
    + ["{{ 'x' | attr('center')(10**9) }}", "{{ 'x'['center'](10**9) }}", "{{ lipsum(10**9) }}"]
    + ["{{ 'x'.translate({120: 'y' * 10**6}) }}", "{{ 'x'.encode().center(10**9) }}"],
)
def test_what_no_template_needs_is_not_there(text: str) -> None:
    chat = template(text)
    assert chat.is_usable
    with pytest.raises(Unsupported, match="fails on these messages"):
        chat.render([ChatMessage("user", "a")])


@pytest.mark.parametrize("name", ["batch(10**9)", "center(10**9)", "wordwrap(1, 1, 'x' * 10**6)"])
def test_a_template_with_a_filter_that_is_not_there_is_told_of(name: str) -> None:
    chat = template("{{ 'x' | " + name + " }}")
    assert not chat.is_usable
    assert "No filter named" in chat.problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'a-b-a'.replace('a', 'c', 1)", "c-b-a"),
        ("'a-b' | replace('-', '+')", "a+b"),
        ("', '.join(['a', 'b'])", "a, b"),
        ("[1, 2] | join('/')", "1/2"),
        ("messages | join(',', attribute='role')", "user"),
        ("'a\n\nb' | indent(2)", "a\n\n  b"),
        ("'a\nb' | indent('> ', true)", "> a\n> b"),
        ("'%s %d%% * 12345' % ('a', 7)", "a 7% * 12345"),
        ("7 % 4", "3"),
        ("'%s: %05d' | format('x', 7)", "x: 00007"),
        ("'{}-{:>3} * 12345'.format(1, 2)", "1-  2 * 12345"),
        ("'{{\"a\": {x}}}'.format(x=1)", '{"a": 1}'),
        ("'{x}'.format_map({'x': 1})", "1"),
        ("[1] | tojson(indent=2)", "[\n  1\n]"),
    ],
)
def test_filters_and_methods_do_what_they_do_elsewhere(text: str, expected: str) -> None:
    assert whole("{{ " + text + " }}", "hi") == expected


def test_nothing_is_computed_until_a_chat_is_rendered() -> None:
    """Else a file whose template never ends its constants could not even be loaded."""
    reached = []
    sandbox = Sandbox()
    sandbox.filters["reach"] = reached.append
    text = "{{ 'a' | reach }}{% set x = 'b' | reach %}{{ wanted }}"
    compiled = sandbox.from_string(text)
    assert variables_of(sandbox, text) == {"wanted"}
    assert reached == []
    assert compiled.render(wanted="c") == "Nonec"
    assert reached == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["{{ raise_exception('x' * 10**6) }}", "{{ [].index('" + "x" * 10**6 + "') }}"]
)
def test_what_a_template_says_is_quoted_in_part(text: str) -> None:
    with pytest.raises(Problem) as refusal:
        render(text, "a")
    assert len(refusal.value.message) < 700
    assert "xxx… (10000" in refusal.value.message


def test_a_template_that_never_ends_is_stopped() -> None:
    text = "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    with pytest.raises(LimitExceeded, match="characters"):
        render(text, "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no chat template"),
        ("{% if %}", "does not compile: TemplateSyntaxError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "does not compile: RecursionError"),
        ("{% for a in [] %}" * 50 + "{% endfor %}" * 50, "does not compile: SyntaxError"),
        ("{% " + "x" * 10**6 + " %}", "characters)"),
    ],
    ids=["none", "syntax", "parentheses", "blocks", "long"],
)
def test_a_model_without_a_template_says_what_to_use(text: str | None, said: str) -> None:
    chat = template(text)
    assert not chat.is_usable
    assert said in chat.problem
    assert len(chat.problem) < 700
    with pytest.raises(Problem) as refusal:
        chat.render([ChatMessage("user", "hi")])
    assert refusal.value.code == "unsupported"
    assert "generate" in refusal.value.hint


def test_a_vocabulary_without_control_tokens() -> None:
    chat = ChatTemplate(ChatFormat(BARE, "", "", False, False), ())  # noqa: FBT003
    assert chat.render([ChatMessage("user", "<s>")]) == [Span("<s>", is_template=True)]
