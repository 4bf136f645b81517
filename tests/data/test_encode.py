"""What is scored of each kind of record: turns, tools, texts, sampled tokens, gold answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rao_kernels.data import (
    DataReport,
    Record,
    SampledTokens,
    TokenizedRow,
    TokenizeOptions,
    tokenize_records,
)
from rao_kernels.data.messages import Message
from rao_kernels.errors import DataError
from rao_kernels.generation import prompt_ids
from rao_kernels.rewards.encode import encode
from tests.train.tiny import tiny_tokenizer

# Writes calls of tools, and lists the tools before the first message.
WITH_TOOLS = (
    "{% for t in tools or [] %}{{ 'tool ' + t['name'] + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<a>' if m['role'] == 'assistant' else '<u>' }}"
    "{% for c in m.get('tool_calls') or [] %}{{ 'call ' + c['name'] }}{% endfor %}"
    "{{ (m['content'] or '') + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
# Shortens all answers but the last one, as templates do that leave out earlier reasoning.
REWRITING = (
    "{% for m in messages %}{{ '<a>' if m['role'] == 'assistant' else '<u>' }}"
    "{{ m['content'] if loop.last or m['role'] == 'user' else 'cut' }}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def said(*contents: str) -> list[Message]:
    """Turns of assistant and user, one after the other."""
    roles = ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def tokenize(record: Record, tokenizer: Any, **options: Any) -> TokenizedRow:
    (row,) = tokenize_records([record], tokenizer, TokenizeOptions(**options))
    return row


def scored(row: TokenizedRow, number: int, tokenizer: Any) -> list[str]:
    """The runs of scored tokens of a response, as texts."""
    ids = row.responses[number].tolist()
    mask = [True] * len(ids) if row.masks is None else row.masks[number].tolist()
    assert len(mask) == len(ids)
    runs, previous = [], False
    for token, mark in zip(ids, mask, strict=True):
        if mark:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = mark
    return [tokenizer.decode(run).replace(" ", "") for run in runs]


def test_turns_of_the_assistant_are_scored_with_their_ends() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    record = Record("ask", [said("yes", "why", "so"), said("no")], [1.0, 0.0], "r")
    row = tokenize(record, tokenizer)
    assert tokenizer.decode(row.prompt).replace(" ", "") == "<u>ask</s>\n<a>"
    whole = tokenizer.decode(row.responses[0]).replace(" ", "")
    assert whole == "yes</s>\n<u>why</s>\n<a>so</s>"
    assert scored(row, 0, tokenizer) == ["yes</s>", "so</s>"]
    assert scored(row, 1, tokenizer) == ["no</s>"]


def test_what_is_scored_is_what_a_single_turn_would_be() -> None:
    """Each scored run equals the response of a record that ends with that turn."""
    tokenizer = tiny_tokenizer(chat=True)
    turns = said("yes", "why", "so", "and", "done")
    row = tokenize(Record("ask", [turns], None, "r"), tokenizer)
    singles = []
    for number in (0, 2, 4):
        prompt = [{"role": "user", "content": "ask"}, *turns[:number]]
        one = tokenize(Record(prompt, [turns[number]["content"]], None, "r"), tokenizer)
        singles += scored(one, 0, tokenizer)
    assert scored(row, 0, tokenizer) == singles


def test_no_mask_where_every_response_is_one_turn() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    row = tokenize(Record("ask", [said("yes"), "no"], None, "r"), tokenizer)
    assert row.masks is None
    plain = tokenize(Record("ask", ["yes", "no"], None, "r"), tokenizer)
    assert [ids.tolist() for ids in row.responses] == [ids.tolist() for ids in plain.responses]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = REWRITING
    record = Record("ask", [said("yes", "why", "so")], None, "file.jsonl:7")
    with pytest.raises(DataError, match=r"file\.jsonl:7: the chat template .* message 1"):
        tokenize(record, tokenizer)
    report = DataReport()
    fine = replace(record, responses=["yes"])
    rows = tokenize_records(
        [record, fine], tokenizer, TokenizeOptions(), bad_rows="skip", report=report
    )
    assert len(rows) == 1
    assert "record of its own" in report.skipped[0]


@pytest.mark.parametrize("chat", [False, True])
def test_nothing_ends_a_response_that_sampling_cut(chat: bool) -> None:
    tokenizer = tiny_tokenizer(chat=chat)
    record = Record("ask", ["yes", "it is ye"], [1.0, 0.0], "r", gold="so", finished=[True, False])
    report = DataReport()
    (row,) = tokenize_records([record], tokenizer, TokenizeOptions(), report=report)
    texts = [tokenizer.decode(ids).replace(" ", "") for ids in [*row.responses, row.gold]]
    assert texts == ["yes</s>", "itisye", "so</s>"]
    assert "1 responses not finished" in report.describe()


def test_only_the_last_turn_of_several_is_cut() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    record = Record("ask", [said("yes", "why", "so")], None, "r", finished=[False])
    assert scored(tokenize(record, tokenizer), 0, tokenizer) == ["yes</s>", "so"]


def test_a_template_that_hides_the_end_of_a_cut_response_is_refused() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = REWRITING.replace("m['content'] if", "m['content'][:3] if")
    record = Record("ask", ["a long answer"], None, "f.jsonl:3", finished=[False])
    with pytest.raises(DataError, match=r"f\.jsonl:3: .* not `finished`"):
        tokenize(record, tokenizer)


def test_tools_need_a_template() -> None:
    record = Record("sum", ["four"], None, "f.jsonl:3", tools=[{"name": "add"}])
    tokenizer = tiny_tokenizer(chat=True)
    with pytest.raises(DataError, match=r"f\.jsonl:3: `tools`, which plain text"):
        tokenize(record, tokenizer, prompt_format="plain")
    with pytest.raises(DataError, match=r"f\.jsonl:3: `tools`, which plain text"):
        prompt_ids(record, tokenizer, "plain")
    with pytest.raises(DataError, match=r"f\.jsonl:3: `tools`, which plain text"):
        encode(tiny_tokenizer(), "sum", "four", record.where, record.tools)


def test_turns_need_a_template() -> None:
    with pytest.raises(DataError, match="r: responses of several messages, but the tokenizer"):
        tokenize(Record("ask", [said("yes", "why", "so")], None, "r"), tiny_tokenizer())


def test_tools_and_calls_reach_the_template() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = WITH_TOOLS
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    turns = [call, {"role": "tool", "content": "four"}, {"role": "assistant", "content": "it is"}]
    row = tokenize(Record("sum", [turns], None, "r", tools=[{"name": "add"}]), tokenizer)
    assert tokenizer.decode(row.prompt).replace(" ", "") == "tooladd\n<u>sum</s>\n<a>"
    assert scored(row, 0, tokenizer) == ["calladd</s>", "itis</s>"]
    prompt = [{"role": "user", "content": "sum"}, *turns[:2]]
    later = tokenize(Record(prompt, ["it is"], None, "r"), tokenizer)
    expected = "<u>sum</s>\n<a>calladd</s>\n<u>four</s>\n<a>"
    assert tokenizer.decode(later.prompt).replace(" ", "") == expected


@pytest.mark.parametrize("chat", [False, True])
def test_text_without_prompt(chat: bool) -> None:
    """BOS is its prompt and EOS its end, whatever template the tokenizer has."""
    tokenizer = tiny_tokenizer(chat=chat)
    row = tokenize(Record("", ["once"], None, "r"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(row.prompt) == ["<s>"]
    assert tokenizer.convert_ids_to_tokens(row.responses[0]) == [*"once", "</s>"]
    again = tokenize(Record("", ["<s>once</s>"], None, "r"), tokenizer)
    assert again.responses[0].tolist() == row.responses[0].tolist()


def test_text_without_prompt_and_bos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    row = tokenize(Record("", ["once"], None, "r"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(row.prompt) == ["o"]
    assert tokenizer.convert_ids_to_tokens(row.responses[0]) == [*"nce", "</s>"]
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="r: its text has 1 token, and nothing to learn"):
        tokenize(Record("", ["o"], None, "r"), tokenizer)


SAMPLED = SampledTokens([1, 9, 8], [[5, 6, 2], [7, 7, 7, 7, 2]], [[-0.5, -1.0, -0.25], [-2.0] * 5])


def sampled(**changes: Any) -> Record:
    tokens = replace(SAMPLED, **changes)
    return Record("dc", ["ab", "cccc"], [1.0, 0.0], "r", sampled=tokens)


def test_sampled_tokens_are_used_as_they_are() -> None:
    """They differ from what the texts encode to, as tokens that a policy sampled may."""
    row = tokenize(sampled(), tiny_tokenizer(merges=True))
    assert row.prompt.tolist() == SAMPLED.prompt_ids
    assert [ids.tolist() for ids in row.responses] == SAMPLED.response_ids
    logps = row.token_inputs["old_token_logps"]
    assert [values.tolist() for values in logps] == SAMPLED.old_logps
    assert {values.dtype for values in logps} == {torch.float32}
    assert tokenize(sampled(old_logps=None), tiny_tokenizer()).token_inputs == {}


def test_values_of_tokens_follow_dropped_and_cut_responses() -> None:
    dropped = tokenize(sampled(), tiny_tokenizer(), max_length=7)
    assert [ids.tolist() for ids in dropped.responses] == [[5, 6, 2]]
    assert dropped.rewards == [1.0]
    assert [v.tolist() for v in dropped.token_inputs["old_token_logps"]] == [[-0.5, -1.0, -0.25]]
    cut = tokenize(sampled(), tiny_tokenizer(), max_length=5, truncate_responses=True)
    assert [ids.tolist() for ids in cut.responses] == [[5, 6], [7, 7]]
    assert [v.tolist() for v in cut.token_inputs["old_token_logps"]] == [[-0.5, -1.0], [-2.0] * 2]


def test_masks_follow_dropped_and_cut_responses() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    record = Record("ask", [said("yes", "why", "so"), said("no", "why")[:1]], [1.0, 0.0], "r")
    (row,) = tokenize_records(
        [record], tokenizer, TokenizeOptions(max_length=15, truncate_responses=True)
    )
    assert row.masks is not None
    assert [len(mask) for mask in row.masks] == [len(ids) for ids in row.responses] == [8, 3]
    assert row.masks[0].tolist() == [True] * 4 + [False] * 4
    (row,) = tokenize_records([record], tokenizer, TokenizeOptions(max_length=15))
    assert row.masks is not None
    assert [mask.tolist() for mask in row.masks] == [[True] * 3]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"response_ids": [[5]]}, "2 responses, but `response_ids` of 1"),
        ({"old_logps": [[-1.0]]}, "2 responses, but `old_logps` of 1"),
        ({"old_logps": [[-1.0] * 3, [-1.0]]}, "response 1 has 5 `response_ids`, but 1 values"),
        ({"prompt_ids": []}, "its prompt has no token"),
        ({"prompt_ids": [5] * 20}, "its prompt has 20 tokens"),
    ],
)
def test_sampled_tokens_of_other_lengths(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"r: {problem}"):
        tokenize(sampled(**changes), tiny_tokenizer(), max_length=20)


def test_gold_answer_shares_the_prompt() -> None:
    tokenizer = tiny_tokenizer(merges=True)
    record = Record("xa", ["cd"], [0.5], "r", gold="b", gold_reward=1.0, ref_rewards=[0.1, 0.2])
    row = tokenize(record, tokenizer)
    assert tokenizer.convert_ids_to_tokens(row.prompt) == ["<s>", "x"]
    assert row.gold is not None
    assert tokenizer.convert_ids_to_tokens(row.gold) == ["ab", "</s>"]
    assert tokenizer.convert_ids_to_tokens(row.responses[0]) == ["a", "c", "d", "</s>"]
    assert (row.gold_reward, row.ref_rewards, row.gold_mask) == (1.0, [0.1, 0.2], None)


def test_gold_answer_beside_sampled_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("dc")["input_ids"]
    row = tokenize(replace(sampled(prompt_ids=[1, *ids]), gold="ok"), tokenizer)
    assert row.gold is not None
    assert tokenizer.convert_ids_to_tokens(row.gold) == ["o", "k", "</s>"]
    with pytest.raises(DataError, match="r: its prompt, encoded with the gold answer"):
        tokenize(replace(sampled(), gold="ok"), tokenizer)


def test_gold_answer_of_several_turns_has_a_mask() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    row = tokenize(Record("ask", ["no"], None, "r", gold=said("yes", "why", "so")), tokenizer)
    assert row.masks is not None and row.gold is not None and row.gold_mask is not None
    assert row.masks[0].all()
    gold = replace(row, responses=[row.gold], masks=[row.gold_mask])
    assert scored(gold, 0, tokenizer) == ["yes</s>", "so</s>"]
