import random

from pruning.data.cleaning import Cleaner, CleaningReport, RunsOfWords
from tests.pruning.text import make_documents

DOCUMENTS = make_documents(20)


def kept(cleaner: Cleaner, documents: list[str]) -> tuple[list[str], CleaningReport]:
    report = CleaningReport()
    return list(cleaner.keep(documents, report)), report


def nearly(document: str) -> str:
    """The same text with one word changed."""
    words = document.split()
    words[len(words) // 2] = "elsewhere"
    return " ".join(words)


def unlike(seed: int, *, num_words: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(500)}" for _ in range(num_words))


def test_nothing_is_left_out_unless_asked_to() -> None:
    documents, report = kept(Cleaner("none"), DOCUMENTS * 2)
    assert documents == DOCUMENTS * 2
    assert report.num_removed == 0


def test_copies_are_left_out_whatever_their_case_and_blanks() -> None:
    first, second = DOCUMENTS[:2]
    documents, report = kept(Cleaner("exact"), [first, second, f"  {first.upper()}\n"])
    assert documents == [first, second]
    assert (report.num_documents, report.num_copies) == (3, 1)


def test_copies_are_found_across_domains() -> None:
    cleaner = Cleaner("exact")
    kept(cleaner, DOCUMENTS[:5])
    documents, report = kept(cleaner, DOCUMENTS[3:8])
    assert documents == DOCUMENTS[5:8]
    assert report.num_copies == 2


def test_near_copies_are_left_out_and_other_texts_are_not() -> None:
    originals = [unlike(seed, num_words=300) for seed in range(30)]
    documents, report = kept(Cleaner("near"), [*originals, nearly(originals[3])])
    assert documents == originals
    assert (report.num_copies, report.num_near_copies) == (0, 1)


def test_a_document_that_holds_an_asked_question_is_left_out() -> None:
    question = unlike(1, num_words=13)
    page = f"{unlike(2)} {question.upper()}! {unlike(3)}"
    cut = f"{unlike(2)} {' '.join(question.split()[:12])} {unlike(3)}"
    cleaner = Cleaner("none", evaluations=RunsOfWords([question]))
    documents, report = kept(cleaner, [page, cut])
    assert documents == [cut]
    assert report.num_contaminated == 1
    assert "1 of 2 documents left out: 0 copies, 0 near copies, 1 that share" in report.summary()


def test_a_question_shorter_than_thirteen_words_contaminates_nothing() -> None:
    assert len(RunsOfWords([unlike(1, num_words=12)])) == 0
