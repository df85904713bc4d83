"""Conversations as text: the model's own chat template renders them and says who speaks where."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from pruning.errors import InvalidData

Messages = Sequence[Mapping[str, Any]]
_MARKS_WHAT_IS_SAID = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Chat(str):
    """A conversation as text; `spoken` are the spans of characters that the assistant says."""

    __slots__ = ("spoken",)
    spoken: tuple[tuple[int, int], ...]

    def __new__(cls, text: str, spoken: Sequence[tuple[int, int]]) -> Self:
        chat = super().__new__(cls, text)
        chat.spoken = tuple(spoken)
        return chat

    def is_spoken(self, offsets: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether tokens, by the characters they stand for, are wholly the assistant's."""
        starts = [start for start, _ in self.spoken]
        found = []
        for first, last in offsets:
            span = bisect_right(starts, first) - 1
            found.append(span >= 0 and last <= self.spoken[span][1])
        return found


class ChatTemplate:
    """Renders conversations as a model was taught to read them.

    Templates that mark what the assistant says (`{% generation %}`) are believed. Of others, a
    message of the assistant is what it adds to the conversation before it and the prompt for an
    answer: its words and what closes them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError as error:
            raise InvalidData(
                "the model has no chat template to render conversations with",
                param="data.train",
                hint="Take the chat model's tokenizer, or give text instead of messages_field.",
            ) from error
        self._special_tokens = tokenizer.special_tokens_map

    def render(self, messages: Messages) -> Chat:
        """One conversation.

        Raises:
            ValueError: the template refuses it, or what the assistant says cannot be told apart.
        """
        try:
            if _MARKS_WHAT_IS_SAID.search(self._template):
                text, spoken = self._rendered(messages, return_assistant_tokens_mask=True)
            else:
                text, _ = self._rendered(messages)
                spoken = self._differences(messages, text)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses it: {error}") from error
        if not spoken:
            raise ValueError("the assistant says nothing in it")
        return Chat(text, spoken)

    def _differences(self, messages: Messages, text: str) -> list[tuple[int, int]]:
        spoken = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._rendered(messages[:index], add_generation_prompt=True)
            through = self._rendered(messages[: index + 1])[0].rstrip()
            if not (through.startswith(before) and text.startswith(through)):
                raise ValueError(
                    f"the chat template renders message {index} otherwise when the conversation "
                    "goes on: what the assistant says cannot be told apart"
                )
            spoken.append((len(before), len(through)))
        return spoken

    def _rendered(self, messages: Messages, **how: bool) -> tuple[str, list[tuple[int, int]]]:
        texts, spoken = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self._template,
            **how,
            **self._special_tokens,
        )
        return texts[0], spoken[0] if spoken else []
