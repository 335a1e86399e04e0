"""Numbers with units: exact values, percent apart, units converted or left open."""

from fractions import Fraction

import pytest

from components.formulas import normal_text
from components.quantities import Quantity, known_unit, read_quantity, same_quantity


def quantity(text):
    return read_quantity(normal_text(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", Quantity(Fraction(8))),
        ("-20", Quantity(Fraction(-20))),
        ("0.49", Quantity(Fraction(49, 100))),
        ("1,234,567.5", Quantity(Fraction(12345675, 10))),
        (r"10{,}080", Quantity(Fraction(10080))),
        (r"11,\! 111", Quantity(Fraction(11111))),
        ("1 1/4", Quantity(Fraction(5, 4))),
        (r"-1\frac{1}{4}", Quantity(Fraction(-5, 4))),
        (r"7.8\times 10^2", Quantity(Fraction(780))),
        ("50%", Quantity(Fraction(50), is_percent=True)),
        (r"50\%", Quantity(Fraction(50), is_percent=True)),
        ("30°", Quantity(Fraction(30), "degree")),
        (r"30{}^\circ", Quantity(Fraction(30), "degree")),
        ("360 sets", Quantity(Fraction(360), "sets")),
        (r"5\text{ cm}^2", Quantity(Fraction(5), "cm^2")),
        (r"5\,\mathrm{m}/\mathrm{s}", Quantity(Fraction(5), "m/s")),
        ("5 km/h", Quantity(Fraction(5), "km/h")),
        ("eight", Quantity(Fraction(8))),
        ("twenty-five apples", Quantity(Fraction(25), "apples")),
        ("two hundred and fifty-three", Quantity(Fraction(253))),
        ("1.5 million", Quantity(Fraction(1_500_000))),
        (r"3\text{ thousand dollars}", Quantity(Fraction(3000), "dollars")),
        ("1.2e-3", Quantity(Fraction(12, 10_000))),
        ("7.8e+2", Quantity(Fraction(780))),
        ("12 square centimeters", Quantity(Fraction(12), "square centimeters")),
    ],
)
def test_a_quantity_reads_exactly(text, expected):
    assert quantity(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "5x",
        "5 or 6",
        "5 more",
        "5 dozen",
        "5 percent points",
        "1,2",
        "1,23,456",
        "1 2",
        "1:2",
        r"\sqrt{4}",
        "5 radians",
        "three or four",
        "twenty ten",
        "hundred two hundred",
        "5 thousand more",
        "1e5",
    ],
)
def test_what_is_not_exactly_one_rational_number_is_none(text):
    assert quantity(text) is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("8", "8.0", True),
        ("8", "-8", False),
        ("50%", "0.5", True),
        ("0.5", "50%", True),
        ("50%", "50", True),
        ("50%", "5", False),
        ("0.5%", "0.5", None),
        ("50", "50%", None),
        ("50", "5%", False),
        ("50%", "50 cm", None),
        ("5", "50 mm", None),
        ("5", "51 mm", False),
        ("5", "5 units", True),
        ("5 cm", "50 mm", True),
        ("5 cm", "5 mm", False),
        ("5 cm^2", "5 cm^3", False),
        ("72 km/h", "20 m/s", True),
        (r"1\text{ L}", r"1000\text{ mL}", True),
        ("5 cm", "5", True),
        ("5", "5 cm", True),
        ("5", "5 apples", True),
        ("7 people", "7", True),
        ("7 people", "7 children", None),
        ("7 people", "8 children", False),
        ("30°", "30", True),
        ("90 minutes", "1.5 hours", True),
    ],
)
def test_quantities_compare_by_value_and_unit(a, b, expected):
    assert same_quantity(quantity(a), quantity(b)) is expected


def test_units_have_dimensions_and_factors():
    assert known_unit("cm^2") == ("length^2", Fraction(1, 10_000))
    assert known_unit("m/s") == ("length/time", Fraction(1))
    assert known_unit("kg^2") is None
    assert known_unit("apples") is None
