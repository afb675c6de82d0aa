from engine.corpora import FolderCorpus
from engine.corpora.repeated import RepeatedCorpus
from engine.objects.memory import MemoryObjects


def test_images_are_repeated_up_to_the_number() -> None:
    objects = MemoryObjects()
    objects.write("a.png", b"1")
    objects.write("b.png", b"2")
    corpus = RepeatedCorpus(FolderCorpus(objects), 5)
    records = list(corpus.records())
    assert [record.image_id for record in records] == ["0/a.png", "0/b.png", "1/a.png", "1/b.png", "2/a.png"]
    assert [corpus.read(record) for record in records] == [b"1", b"2", b"1", b"2", b"1"]
    assert list(corpus.records(after=records[2])) == records[3:]


def test_an_empty_corpus_stays_empty() -> None:
    assert list(RepeatedCorpus(FolderCorpus(MemoryObjects()), 5).records()) == []
