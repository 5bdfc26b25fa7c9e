"""Pages of Markdown with places that commands fill in."""

from ldm.evaluation.pages import filled, places, table

PAGE = """# Title

<!-- begin one -->
old
<!-- end one -->

between

<!-- begin two-b -->
<!-- end two-b -->
after
"""


def test_places_are_found_in_order():
    assert places(PAGE) == ["one", "two-b"]


def test_only_the_places_of_what_is_given_change():
    text = filled(PAGE, {"one": "| new |\n"})
    assert text == PAGE.replace("old", "| new |")
    assert filled(text, {"one": "| new |"}) == text
    assert filled(PAGE, {}) == PAGE


def test_what_looks_like_a_pattern_is_taken_as_it_is():
    assert "\\1 \\g<name>" in filled(PAGE, {"two-b": "\\1 \\g<name>"})


def test_a_part_without_a_place_gets_one_at_the_end():
    text = filled(PAGE, {"three": "new", "one": "newer"})
    assert places(text) == ["one", "two-b", "three"]
    assert text.startswith("# Title\n\n<!-- begin one -->\nnewer\n")
    assert text.endswith("after\n\n<!-- begin three -->\nnew\n<!-- end three -->\n")
    assert filled("", {"one": "first"}) == "<!-- begin one -->\nfirst\n<!-- end one -->\n"


def test_a_word_in_angle_brackets_can_be_seen_in_a_table():
    assert table(["word"], [["<bear>"]])[-1] == r"| \<bear> |"
