from pathseg.store.describe import describe
from pathseg.store.features import FeatureStore


def test_a_store_is_described_with_what_made_it(toy_store):
    text = describe(toy_store)
    for words in (
        "5 of toy (train 4, test 1)",
        "512x256 px",
        "0.5 um/px",
        "UNTRAINED",
        "background, gland",
        "t 50",
        "blocks 0,4-5,9: complete",
        "6 channels, 16x16 cells a patch, 6.1 kB an image",
    ):  # 6*16*16*2*2 bytes
        assert words in text


def test_an_unfinished_store_says_how_much_is_there(toy_store):
    (toy_store.location.root / "_done/t50/0,4-5,9/000003.json").unlink()
    assert "4 of 5 images" in describe(FeatureStore.open(toy_store.location.root))
