"""Labels that come from elsewhere, and labels that go elsewhere: the file formats of step labels.

Owns the table of formats; a format turns one row of a file into a problem with solutions and back, and knows no
file, folder or stage. To add one: two functions and a line here.
"""

from __future__ import annotations

from components.interchange.foreign import Format
from components.interchange.nested import PARQUET
from components.interchange.plain import MATH_SHEPHERD, MMPRM_ROWS, STEPWISE, VISUALPRM400K, VISUALPRM_RAW
from components.interchange.prm800k import PRM800K
from components.interchange.trees import MMPRM_TREE

FORMATS: dict[str, Format] = {
    one.name: one
    for one in (VISUALPRM400K, VISUALPRM_RAW, MMPRM_TREE, MMPRM_ROWS, PRM800K, MATH_SHEPHERD, STEPWISE, PARQUET)
}
"""Name on the command line -> the format."""
