import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.data.chat import ChatTemplate
from pruning.data.corpus import DomainTokens, build_corpus
from pruning.data.mixture import MixtureSampler
from pruning.data.sources import ReadReport, read_documents
from pruning.data.tokens import token_ids
from pruning.errors import InvalidData
from pruning.evaluation.perplexity import evaluate_perplexity
from pruning.models.loss import training_loss
from pruning.recipe_parts.data import Data, PathData
from tests.pruning.tiny import END_OF_TEXT

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}[{{ m.role }}] {% if not loop.last and m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def messages(*said: str) -> list[dict[str, str]]:
    """What user and assistant say in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]


TALK = messages("Who prunes?", "The gardener.", "When?", "Each winter, with care.")


def tokenizer_with(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    with_template = copy.deepcopy(tokenizer)
    with_template.chat_template = template
    return with_template


def conversations(number: int) -> list[dict[str, Any]]:
    return [
        {"messages": messages(f"Question {index}?", f"Answer {index}.", "Why?", "It is pruned.")}
        for index in range(number)
    ]


def write_chats(path: Path, rows: list[dict[str, Any]]) -> Data:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "path", "path": str(path), "messages_field": "messages"}
    return Data.model_validate({"train": source, "held_out_fraction": 0.2})


@pytest.fixture
def chats(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> DomainTokens:
    data = write_chats(tmp_path / "chats.jsonl", conversations(40))
    tokenizer = tokenizer_with(tiny_tokenizer, PLAIN)
    (domain,) = build_corpus(data, tokenizer, tmp_path / "corpus").domains
    return domain


def mean_loss_of_answers(model: PreTrainedModel, tokens: np.ndarray) -> float:
    """As Transformers has it: labels of -100 are not learned."""
    ids_BT = torch.from_numpy(token_ids(tokens))[None]
    labels_BT = torch.where(torch.from_numpy(tokens.astype(np.int64))[None] < 0, -100, ids_BT)
    with torch.no_grad():
        return float(model(ids_BT, labels=labels_BT).loss)


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_what_the_assistant_says_is_found_with_what_closes_it(
    tiny_tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer = tokenizer_with(tiny_tokenizer, template)
    chat = ChatTemplate(tokenizer).render(TALK)
    assert chat == tokenizer.apply_chat_template(TALK, tokenize=False)
    said = [chat[start:end] for start, end in chat.spoken]
    assert said == ["The gardener.<|im_end|>", "Each winter, with care.<|im_end|>"]


def test_tokens_of_the_assistant_are_those_that_the_library_marks(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tokenizer_with(tiny_tokenizer, MARKED)
    expected = tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    chat = ChatTemplate(tokenizer_with(tiny_tokenizer, PLAIN)).render(TALK)
    encoded = tokenizer(str(chat), add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == expected["input_ids"]
    assert list(map(int, chat.is_spoken(encoded["offset_mapping"]))) == expected["assistant_masks"]


def test_a_template_that_rewrites_earlier_answers_is_refused_where_it_does(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = ChatTemplate(tokenizer_with(tiny_tokenizer, FORGETFUL))
    once = messages("Who?", "<think>hm</think>Me.")
    chat = template.render(once)
    assert [chat[start:end] for start, end in chat.spoken] == ["<think>hm</think>Me."]
    with pytest.raises(ValueError, match="renders message 1 otherwise"):
        template.render([*once, *messages("When?", "Now.")])


def test_conversations_without_a_chat_template_are_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = write_chats(tmp_path / "chats.jsonl", conversations(3))
    with pytest.raises(InvalidData, match="no chat template"):
        build_corpus(data, tiny_tokenizer, tmp_path / "corpus")


def test_rows_that_are_no_conversation_are_counted_and_named(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows: list[dict[str, Any]] = [
        *conversations(2),
        {"messages": []},
        {"text": "no messages"},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": messages("Is anyone there?")},
    ]
    write_chats(tmp_path / "chats.jsonl", rows)
    report = ReadReport()
    source = PathData(path=str(tmp_path / "chats.jsonl"), messages_field="messages")
    render = ChatTemplate(tokenizer_with(tiny_tokenizer, PLAIN)).render
    assert len(list(read_documents(source, report, render=render))) == 2
    assert (report.num_rows, report.num_malformed) == (6, 4)
    assert "row 3: messages: not a list of messages" in report.examples[0]


def test_only_answers_are_learned_and_all_is_read(
    chats: DomainTokens, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert len(chats.held_out)
    for tokens in (chats.train, chats.held_out):
        text = tiny_tokenizer.decode(token_ids(tokens))
        first, *others = text.split(END_OF_TEXT)[:-1]
        assert first.startswith("<|im_start|>user\nQuestion")
        learned = tiny_tokenizer.decode(tokens[tokens >= 0].astype(np.int64))
        answers = learned.split("<|im_end|>")[:-1]
        assert len(answers) == 2 * (1 + len(others))
        assert answers[0].startswith("Answer")
        assert set(answers[1::2]) == {"It is pruned."}


def test_the_loss_of_packed_conversations_is_that_of_their_answers(
    chats: DomainTokens, tiny_llama: PreTrainedModel
) -> None:
    sampler = MixtureSampler([chats], sequence_length=96, seed=0)
    ids_BT, _ = sampler.next_batch(3)
    num_learned = [int((ids_T[1:] >= 0).sum()) for ids_T in ids_BT]
    expected = sum(
        number * mean_loss_of_answers(tiny_llama, ids_T.numpy())
        for number, ids_T in zip(num_learned, ids_BT, strict=True)
    )
    loss = training_loss(tiny_llama, ids_BT, "float32")
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_sequence_without_an_answer_teaches_nothing(tiny_llama: PreTrainedModel) -> None:
    loss = training_loss(tiny_llama, ~torch.arange(1, 33)[None], "float32")
    loss.backward()
    assert float(loss) == 0
    gradients = [p.grad for p in tiny_llama.parameters() if p.grad is not None]
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_held_out_perplexity_is_that_of_the_answers(
    chats: DomainTokens, tiny_llama: PreTrainedModel
) -> None:
    tokens = chats.held_out[:120]
    found = evaluate_perplexity(
        tiny_llama, [tokens], context_length=120, precision="float32", data_fingerprint="f"
    )
    assert np.log(found.value) == pytest.approx(mean_loss_of_answers(tiny_llama, tokens), rel=1e-5)
    assert found.protocol["num_tokens"] == int((tokens[1:] >= 0).sum())
