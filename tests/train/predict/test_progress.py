from pathseg.train.predict.progress import Progress


def test_the_bar_moves_by_windows_and_ends_full(capsys):
    with Progress(2) as progress:
        for done in range(3):
            progress("a", done, 2)
        progress("b", 0, 0)
    assert "100 %" in capsys.readouterr().err


def test_the_image_and_its_windows_are_named(capsys):
    with Progress(1) as progress:
        progress("slide", 3, 4)
    assert "slide: window 3 of 4" in capsys.readouterr().err
