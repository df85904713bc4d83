"""Documents to token ids by the fast tokenizer's own threads, a batch ahead of who takes them."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerFast

from pruning.data.chat import Chat, ChatTemplate
from pruning.data.sources import Render, as_plain_text
from pruning.data.tokens import TokenWriter
from pruning.errors import InvalidData
from pruning.recipe_parts.data import DataSource

Marked = TypeVar("Marked")
"""What a document is marked with."""


class DocumentTokenizer:
    """Texts and conversations to ids, without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if tokenizer.eos_token_id is None:
            raise InvalidData("the tokenizer has no end-of-sequence token", param="model")
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._eos_token_id = int(tokenizer.eos_token_id)

    def encode(self, documents: Sequence[str]) -> list[list[int]]:
        """Ids of each; of a conversation, what the assistant does not say as complements."""
        if not any(isinstance(document, Chat) for document in documents):
            # Without offsets, which only conversations need, the library is faster.
            found = self._backend.encode_batch_fast(documents, add_special_tokens=False)
            return [encoded.ids for encoded in found]
        found = self._backend.encode_batch(documents, add_special_tokens=False)
        return [
            _only_read(document, encoded.ids, encoded.offsets)
            for document, encoded in zip(documents, found, strict=True)
        ]

    def encode_ahead(
        self, batches: Iterable[list[tuple[str, Marked]]]
    ) -> Iterator[list[tuple[str, Marked, list[int]]]]:
        """Each batch with its ids; while it is taken, the next one is read and tokenised."""
        before: tuple[list[tuple[str, Marked]], Future[list[list[int]]]] | None = None
        with ThreadPoolExecutor(max_workers=1) as pool:
            for batch in batches:
                documents = [document for document, _ in batch]
                begun = batch, pool.submit(self.encode, documents)
                if before is not None:
                    yield _with_ids(*before)
                before = begun
            if before is not None:
                yield _with_ids(*before)

    def render_for(self, source: DataSource) -> Render:
        """How the conversations of a source become text.

        Raises:
            InvalidData: it has some, and the model no chat template.
        """
        return ChatTemplate(self._tokenizer).render if _has_chats(source) else as_plain_text

    def writer(self, path: Path, source: DataSource) -> TokenWriter:
        """Writes the tokens of a source."""
        return TokenWriter(
            path,
            vocab_size=len(self._tokenizer),
            eos_token_id=self._eos_token_id,
            chats=_has_chats(source),
        )


def _with_ids(
    batch: list[tuple[str, Marked]], ids: "Future[list[list[int]]]"
) -> list[tuple[str, Marked, list[int]]]:
    return [
        (document, mark, one) for (document, mark), one in zip(batch, ids.result(), strict=True)
    ]


def _has_chats(source: DataSource) -> bool:
    return getattr(source, "messages_field", None) is not None


def _only_read(chat: str, ids: list[int], offsets: list[tuple[int, int]]) -> list[int]:
    assert isinstance(chat, Chat), "a source has conversations or texts"
    spoken = chat.is_spoken(offsets)
    return [token if said else ~token for token, said in zip(ids, spoken, strict=True)]
