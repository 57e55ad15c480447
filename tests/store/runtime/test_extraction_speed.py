from pathseg.store.runtime.extraction_speed import ExtractionSpeed, read_speed, record_speed


def test_the_longest_run_is_kept(toy_key, tmp_path):
    for passes, seconds in ((10, 4.0), (3, 1.0), (0, 9.0)):
        record_speed(tmp_path, toy_key(), ExtractionSpeed("mini", passes, seconds, "cpu"))
    assert read_speed(tmp_path, toy_key()) == ExtractionSpeed("mini", 10, 4.0, "cpu")
    record_speed(tmp_path, toy_key(), ExtractionSpeed("mini", 20, 5.0, "cpu", 2))
    assert str(read_speed(tmp_path, toy_key())) == "mini on 2 workers, cpu"


def test_other_features_have_their_own(toy_key, tmp_path):
    record_speed(tmp_path, toy_key(), ExtractionSpeed("mini", 10, 4.0, "cpu"))
    assert read_speed(tmp_path, toy_key(layout="image")) is None


def test_a_damaged_measurement_is_none_and_is_replaced(toy_key, tmp_path):
    record_speed(tmp_path, toy_key(), ExtractionSpeed("mini", 10, 4.0, "cpu"))
    (file,) = (tmp_path / "extractions").iterdir()
    file.write_text('{"passes": "many"}')
    assert read_speed(tmp_path, toy_key()) is None
    record_speed(tmp_path, toy_key(), ExtractionSpeed("mini", 1, 1.0, "cpu"))
    assert read_speed(tmp_path, toy_key()).passes == 1
