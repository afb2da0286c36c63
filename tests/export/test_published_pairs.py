"""The guide's table of public drafters is what the code does with their configs."""

from pathlib import Path

from published_pairs import PAIRS, rows, table

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "models.md"


def test_the_guides_table(tmp_path):
    shown = GUIDE.read_text().partition("<!-- published pairs -->\n")[2].partition("<!-- end -->")[0]
    assert table(tmp_path) == shown, "run: python tests/published_pairs.py"


def test_what_cannot_be_run_names_who_can(tmp_path):
    found = rows(tmp_path)
    assert len(found) == len(PAIRS)
    for name, _, verdict, sentence, engines in found:
        assert (verdict == "hands over") == bool(sentence and engines), name
        assert "flashdraft launch" in sentence or not engines or not sentence, (name, sentence)
        assert "fetch" not in sentence, (name, sentence)
