"""Extraction: what a response states as its answer, and nothing that it does not state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.extraction import extract_answer
from components.letters import leading_letter

WORLD = "red = 3\n\nblue = 5\n\n3 + 5 = 8\n\nanswer = 8"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (WORLD, "8"),
        (r"so \boxed{3}. No: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4}", "3, 4"),
        (r"$\boxed{3}$, $\boxed{4}$ or $\boxed{5}$.", "3, 4, 5"),
        (r"\boxed{\text{(I) } x}. But \text{Option (J): } \boxed{ J }", "J"),
        ("\\boxed{3}\n\\boxed{4}", "4"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {5}.", "5"),
        (r"\fbox{5}", "5"),
        ("<step>a</step><answer> 7 </answer>", "7"),
        ("The answer is 3.\nThe final answer is: $4$.", "$4$"),
        ("**Answer:** 12", "12"),
        ("**Answer**: 12", "12"),
        ("Answer: (B)", "(B)"),
        ("The answer is 8. I hope it is correct.", "8"),
        ("The answer to the question is 8.", "8"),
        ("Answer: 3.14", "3.14"),
        ("<think>answer is 4</think> The answer is 5", "5"),
        ("ANSWER = -2", "-2"),
        ("Answer:\n8", "8"),
        ("**Final Answer**\n\n$x = 5$", "$x = 5$"),
        ("### Final Answer\n12 cm", "12 cm"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("He pays 9 * 2 = 18.\nA: 18", "18"),
        ("8", "8"),
        ("$x = 5$", "$x = 5$"),
        ("250 g", "250 g"),
        ("答案：8", "8"),
    ],
)
def test_the_stated_answer_is_extracted(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3 + 5 = 8",
        "There are 8 apples.",
        "We get 8\n8 apples are left over there",
        "I cannot answer this",
        r"so \boxed{3} and \boxed{4",
        r"\boxed{}",
        "<think>answer is 4",
        "answered 8 = 8",
        "the answer is not known",
    ],
)
def test_nothing_stated_is_no_answer(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("**Answer: C**", "C"),
        ("**Answer:** C. 12", "C"),
        ("Therefore, option D is correct.", "D"),
        ("So option (D) is the correct answer.", "D"),
        ("The correct option is C because B is too small.", "C"),
        ("The correct answer is: **E**", "E"),
        ("The correct choice is (A), since 3 = 3.", "A"),
        ("Choice: B", "B"),
        ("I would choose option C.", "C"),
        ("12 + 3 = 15\n\nB", "B"),
        ("12 + 3 = 15\n(B)", "B"),
        ("12 + 3 = 15\n**B**", "B"),
        ("12 + 3 = 15\nB. 15", "B"),
        ("B", "B"),
        ("(b)", "B"),
        ("A. 12", "A"),
        ("The answer is A. No wait, the answer is B.", "B"),
        ("Which one? The boat that belongs to Sara is option (C).", "C"),
        ("It cannot be B, so the card must be A.", "A"),
        ("The answer is (B).\n\nI hope this helps! Let me know.", "B"),
        ("Final answer\n\n(D)", "D"),
        (r"\boxed{\text{(B)}}", "B"),
        ("<answer>C</answer>", "C"),
        ("答案是B。", "B"),
        ("因此,答案选C。", "C"),
        ("Ans: C", "C"),
        ("So the answer is B. Let me recompute: C is the correct answer.", "C"),
    ],
)
def test_the_stated_option_is_extracted(text, letter):
    stated = extract_answer(text, is_choice=True)
    assert stated is not None
    assert leading_letter(stated.replace(r"\text", "").strip("{}")) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A bird sits on a tree.",
        "(A) 12 (B) 13 (C) 14",
        "Either (A) or (B).",
        "I think that B or C might do.",
        "None of the other answers is correct",
    ],
)
def test_no_option_is_guessed(text):
    stated = extract_answer(text, is_choice=True)
    assert stated is None or leading_letter(stated) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B) 12", "B"),
        ("B. because", "B"),
        ("B is correct", "B"),
        ("Option B", "B"),
        ("A is correct", "A"),
        ("A, since 3 = 3", "A"),
        ("A bird", None),
        ("I think so", None),
        ("B or C", None),
        ("A and C", None),
        ("(A), (B)", None),
        ("(A) 1 (B) 2", None),
        ("Both", None),
        ("12", None),
        ("K", None),
        ("B2", None),
        ("A's", None),
    ],
)
def test_a_leading_letter_is_an_option_or_a_word(text, letter):
    assert leading_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The perimeter of the rectangle is 18 inches.", "18"),
        ("There are three dots.", "three"),
        ("Karen spent $69.00.", "69.00"),
        ("The total is **16**. I hope this helps!", "16"),
        ("There are two bars with values smaller than 0.", "two"),
        ("The image does not show 5 ages, so it cannot be determined.", None),
        ("Of 3 and 4 and 5.", None),
    ],
)
def test_a_closing_number_counts_only_where_the_prompt_asks_for_no_form(text, answer):
    assert extract_answer(text, is_prose=True) == answer
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the population would decrease.", "decrease"),
        ("It would increase or decrease.", None),
        ("It would not decrease.", None),
    ],
)
def test_a_closing_option_counts_only_where_the_prompt_asks_for_no_form(text, answer):
    options = ("increase", "decrease", "stay the same")
    assert extract_answer(text, is_choice=True, options=options, is_prose=True) == answer


@given(st.text(max_size=200), st.booleans(), st.booleans())
def test_any_text_has_an_answer_or_none(text, is_choice, is_prose):
    answer = extract_answer(text, is_choice=is_choice, is_prose=is_prose)
    assert answer is None or answer.strip()


@given(st.text(alphabet="abc{}\\ ,", max_size=30))
def test_a_box_is_cut_at_its_own_brace(inside):
    if "\\" not in inside and inside.count("{") == inside.count("}") and inside.strip(" ,{}"):
        depths = [inside[: i + 1].count("{") - inside[: i + 1].count("}") for i in range(len(inside))]
        if min(depths) >= 0:
            assert extract_answer(rf"x }} \boxed{{{inside}}} }} y") == inside.strip().rstrip(" ,").strip()


@pytest.mark.parametrize(
    "text",
    [
        "So the answer cannot be B.",
        "(B) is wrong.",
        "Option B is incorrect.",
        "We can exclude (B).",
        "This rules out option (B).",
        "None of the above, not even (B)",
        "I don't choose B.",
        "Do not select option B",
        "The answer is B? No, since 11 is odd.",
        "The answer is B. Sorry, that's wrong.",
        "Option A: 10\nOption B: 11",
    ],
)
def test_an_option_that_is_dismissed_is_not_the_answer(text):
    stated = extract_answer(text, is_choice=True, options=("10", "11"))
    assert stated is None or leading_letter(stated) != "B"


@pytest.mark.parametrize(
    "text",
    [
        "A common wrong answer is 12.",
        "The answer is 12. No wait, it's 13.",
        r"\boxed{12}. This is wrong, I do not know.",
        "<think>\\boxed{12}</think>I think<think>\\boxed{12}",
    ],
)
def test_what_is_taken_back_is_no_answer(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize("text", ["It is not 12", "There are fewer than 12.", "The gap is at most 12.", "See figure 12"])
def test_a_number_that_is_denied_is_no_closing_number(text):
    assert extract_answer(text, is_prose=True) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$x = \boxed{1}$ or $x = \boxed{-2}$", "1, -2"),
        (r"x_1 = \boxed{1}, x_2 = \boxed{-2}", "1, -2"),
        (r"x = \boxed{1}, y = \boxed{2}", "2"),
        (r"so x = \boxed{3}. Then x = \boxed{4}", "4"),
        ("The answer is therefore 12", "12"),
    ],
)
def test_boxes_of_one_name_are_its_values(text, answer):
    assert extract_answer(text) == answer
