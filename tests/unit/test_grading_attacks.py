r"""Responses that name the gold answer and do not give it: a false accept here would teach a wrong step as a right one.

What is denied, supposed, corrected, hedged or only listed is not stated; what is stated stays accepted.
"""

import pytest

from components.grading import Gold, answer_type, grade

THREE = [
    r"\boxed{3}. Actually, the answer is 4.",
    r"\boxed{3}. Correction: the answer is 4.",
    r"\boxed{3} Hmm, let me recheck. It should be 4, so the final answer is 4.",
    r"\boxed{3}. Wait, that is the radius.",
    "\\boxed{3}\n\nLet me re-check: 2 + 2 = 4.",
    "\\boxed{3}\nThe answer is 4.",
    "\\boxed{3}\nThe answer is 3x.",
    "\\boxed{3}\nThe answer is 3.5.",
    r"So \boxed{3}? No, it must be 4.",
    r"\boxed{3} is not the answer; it is 4.",
    r"\boxed{3} is too small.",
    r"The answer is not \boxed{3}.",
    r"The answer isn't \boxed{3}",
    r"It cannot be \boxed{3}. Therefore it is 4.",
    r"The answer is anything but \boxed{3}",
    r"The answer is \boxed{3} or \boxed{4}.",
    r"\boxed{4}, not \boxed{3}",
    r"Either \boxed{4} or \boxed{3}",
    r"One might think \boxed{3}, but the answer is 4.",
    r"Many students believe that it is \boxed{3}",
    r"A wrong approach gives \boxed{3}.",
    r"If x were 2 the answer would be \boxed{3}, but x is 5, so the answer is 4.",
    r"We do not know whether it is \boxed{3}",
    r"If the answer is \boxed{3}, then 2 = 5",
    r"\boxed{3 \text{ or } 4}",
    r"\boxed{\text{not } 3}",
    r"\boxed{\ne 3}",
    r"\boxed{\cancel{3}}",
    r"\boxed{3 \Rightarrow 4}",
    r"\boxed{\text{at least } 3}",
    r"\boxed{\text{maybe } 3}",
    "The answer is 3. Actually it is 4.",
    "The answer is 3. Wait, that is the radius. The answer is 4.",
    "The answer is 3? No, it is 4.",
    "The answer isn't 3.",
    "The answer is 3 or 4.",
    "The answer is either 3 or 4.",
    "The answer is 3 if n is even and 4 if n is odd.",
    "The answer is between 3 and 4.",
    "The answer is 3 less than 10.",
    "The answer is 3 with remainder 2.",
    "The answer is 3 out of 4.",
    "Many students think the answer is 3. But they forget the zero.",
    "You might think that the answer is 3.",
    "It would be wrong to say that the answer is 3.",
    "Suppose the answer is 3. Then 3 + 1 = 5, which is impossible.",
    "If the answer is 3, then 2 = 5, a contradiction.",
    "I doubt that the answer is 3.",
    "Is the answer 3?",
    "Answer: 3\nAnswer: 4",
    "<answer>3 or 4</answer>",
    "So the answer is: 3\n\nQuestion: How many cars are there?\nSolution: I count 7.\nSo the answer is: 7",
]


@pytest.mark.parametrize("text", THREE)
def test_a_number_that_is_not_given_as_the_answer_is_never_right(text):
    assert grade(text, Gold("3", "integer")).value != "right"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{3}",
        r"\boxed{3}. The answer is 3.",
        r"\boxed{3}. The answer is: $3$. I hope it is correct.",
        r"\boxed{3\text{ cm}}. The answer is 3 cm.",
        r"It is not 4, but \boxed{3}.",
        r"Since x cannot be negative, the answer is \boxed{3}.",
        r"Assume x = 3 and y = 2, so the answer is \boxed{3}.",
        r"If the boys had 5 apples and ate 2 of them, \boxed{3} are left.",
        r"Wait, that is wrong. Let me redo it. So \boxed{4}, no: \boxed{3}",
        "One might think it is 4. The answer is 3.",
        "I think the answer is 3.",
        "The answer would be 3.",
        "Question: how many?\nThe answer is 3.",
        "So the answer is 3\n\nQuestion: How many cars are there?",
        "The answer is 3.\n\nQuestion: How many cars are there?\nThe answer is 3.",
        "The answer is 4.\n\nQuestion 2: and cars?\n\\boxed{3}",
    ],
)
def test_a_number_that_is_given_as_the_answer_stays_right(text):
    assert grade(text, Gold("3", "integer")).value == "right"


OPTIONS = ("12", "13", "14", "15", "none of these")
NOT_B = [
    "The answer is not B.",
    "The answer is B or C.",
    "Answer: B or maybe C",
    "Answer: B vs C",
    "Answer: B/C",
    "Answer: B -> C",
    "Answer: B (no, C)",
    "Answer: B? C?",
    "Answer: B, but C is also possible",
    "Answer: B is excluded",
    "Answer: B can be ruled out",
    "Answer: B isn't right",
    "Answer: B cannot be true",
    "Answer: B would be too small",
    "Answer: B does not work",
    "Answer: B fails",
    "The answer is B+1.",
    "The answer is B if x > 3; here x = 2, so the answer is A.",
    "Both B and C are correct.",
    "I would eliminate B.",
    "The correct option is C, not B.",
    "Option B is wrong. Option C is correct.",
    "Option A is correct, unlike option B.",
    "The answer is B. Wait, I made a mistake. The answer is C.",
    "The answer is (B)... no, (C).",
    "If the side were 3, the answer would be B. But it is 4, so C.",
    "Option B would be correct if x were 2.",
    "A common mistake is to choose B.",
    "Students often pick B.",
    "It's neither B nor C.",
    "All but B.",
    "Is the answer B?",
    "We don't know whether the answer is B.",
    "The answer is C. Option B is the best-known trap",
    "The value 12 corresponds to option A rather than B.",
    "A. 12\nB. 13\nC. 14",
    r"\boxed{B} is wrong; the answer is C.",
    r"\boxed{B}. Hmm, the answer is C.",
    r"\boxed{B}? No, \text{C}.",
    r"\boxed{B \text{ or } C}",
    r"\boxed{\text{not B}}",
    r"Either \boxed{B} or \boxed{C}.",
    r"One might think \boxed{B}",
    r"\boxed{(B) 14}",
    r"\boxed{C. 13}",
]


@pytest.mark.parametrize("text", NOT_B)
def test_an_option_that_is_not_chosen_is_never_right(text):
    assert grade(text, Gold("B", "choice", OPTIONS)).value != "right"


@pytest.mark.parametrize(
    "text",
    [
        "The answer would be B.",
        "I would choose option B.",
        "However, if we must choose an answer, we would have to say B (13), as it is larger.",
        "Not A, so the answer is B.",
        "Option B is the only option left.",
        r"\boxed{B}. The answer is 13.",
        r"\boxed{13}. The answer is B.",
        "A is too small. The answer is B - 13.",
    ],
)
def test_an_option_that_is_chosen_stays_right(text):
    assert grade(text, Gold("B", "choice", OPTIONS)).value == "right"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("6", "Half of the towns have 5 or fewer stores, and half of the towns have 6 or more stores."),
        ("1", "The ratio is 3:1."),
        ("1", "The ratio is 1:2, which means there is one male for every two females."),
        ("63", "The values are 58, 59, and 63."),
        ("3", "There are 3 to 4 dots."),
        ("3", "There are 3-4 dots."),
        ("3", "I guess there are 3, maybe 4."),
        ("3", "It is about 3 or 4."),
        ("3", "Is it 3?"),
        ("3", "Is it 3? I am not sure."),
        ("3", "There would be 3 dots if one were removed."),
        ("3", "**3** is wrong."),
        ("3", "It is not **3**."),
        ("3", "It is **3** or **4**."),
        ("3", "The area is **3**. So the volume is 5."),
        ("60", "The other years range from **20** in 2005 to **60** in 2008."),
    ],
)
def test_a_closing_number_that_is_a_bound_or_a_guess_is_never_right(gold, text):
    assert grade(text, Gold(gold, "integer", is_prose=True)).value != "right"


@pytest.mark.parametrize(
    "text",
    [
        "There are **3** bars below 40. The others show 58 and 63.",
        "It is highest in **week 3**. In week 2 it was 200.",
        "There are 3 dots.",
        "The rate is 3.",
    ],
)
def test_a_number_that_opens_or_closes_a_text_is_right(text):
    assert grade(text, Gold("3", "integer", is_prose=True)).value == "right"


@pytest.mark.parametrize(
    ("options", "gold", "text"),
    [
        (("increase", "decrease"), "A", "It would not increase."),
        (("increase", "decrease"), "A", "It would fail to increase."),
        (("increase", "decrease"), "A", "Rather than increase, it would shrink."),
        (("increase", "decrease"), "B", "If the grasshopper population decreases, the mice will most likely increase."),
        (("Yes", "No"), "B", "No doubt, it is larger."),
        (("Yes", "No"), "B", "There are no cubes left of the sphere."),
        (("Yes", "No"), "A", "I cannot say yes."),
        (("6 cm", "7 cm"), "A", "It is more than 6 cm."),
        (("1", "2", "3"), "C", "The radius is half of it.\n\nChoose:\n\n(A) 1\n(B) 2\n(C) 3"),
    ],
)
def test_a_closing_option_that_is_denied_or_only_listed_is_never_right(options, gold, text):
    assert grade(text, Gold(gold, "choice", options, is_prose=True)).value != "right"


@pytest.mark.parametrize(
    ("options", "gold", "text"),
    [
        (("Yes", "No"), "A", "Yes, the sum of the two is greater than the third."),
        (("acute", "obtuse"), "B", "If it is greater than 90 degrees, it is obtuse."),
        (
            ("Rabbits", "Frogs"),
            "B",
            "The animal that lacks food would be the Frog. Its food is gone. It would starve. It would die.",
        ),
    ],
)
def test_an_option_that_a_text_names_alone_is_right(options, gold, text):
    assert grade(text, Gold(gold, "choice", options, is_prose=True)).value == "right"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("C", "1. Set A\n\n2. Set B\n3. Set C"),
        ("C", "1. The figure belongs to Set A.\n2. The figure belongs to Set B.\n3. The figure belongs to Set C."),
        ("A", "Answer: (A) 2006  (B) 2007  (C) 2007"),
        ("B", "The answer is not set B."),
    ],
)
def test_letters_that_are_only_listed_are_never_right(gold, text):
    assert grade(text, Gold(gold, "choices", is_prose=True)).value != "right"


def test_there_are_enough_attacks():
    assert len({*THREE, *NOT_B}) >= 60


@pytest.mark.parametrize(
    ("gold", "answer", "rule"),
    [
        (r"2\sqrt{3}", r"2\sqrt{2} \approx 3.46", "unreadable"),
        (r"2\sqrt{3}", r"2\sqrt{2} \approx 2.83", "expression"),
        ("3.46", r"2\sqrt{3} \approx 3.464", "open"),
        ("3", r"\pi \approx 3", "open"),
        ("52", "52_8", "unit"),
        ("10 to 20", "20 to 40", "unreadable"),
    ],
)
def test_a_rounding_that_does_not_fit_says_why(gold, answer, rule):
    kind, why = answer_type(gold)
    assert kind, why
    assert grade(rf"\boxed{{{answer}}}", Gold(gold, kind)).rule == rule
