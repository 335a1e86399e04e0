"""The questions as Label Studio tasks, and its JSON export as answers.

Owns the labelling configuration and the names of its fields; does not know what answers are worth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from components.annotate.page import picture_urls
from components.records import row_images

TASKS, CONFIG = "tasks.json", "label_config.xml"
LABEL_CONFIG = """\
<View>
  <Repeater on="$images" indexFlag="{{idx}}">
    <Image name="image_{{idx}}" value="$images[{{idx}}].url"/>
  </Repeater>
  <Header value="Question"/>
  <Text name="question" value="$question"/>
  <Header value="Solution"/>
  <Text name="solution" value="$solution"/>
  <Header value="Is the step right (+), wrong (-), or neither (0)?"/>
  <Repeater on="$asked" indexFlag="{{idx}}">
    <Text name="step_{{idx}}" value="$asked[{{idx}}].text"/>
    <Choices name="mark_{{idx}}" toName="step_{{idx}}" choice="single" showInline="true">
      <Choice value="+"/>
      <Choice value="-"/>
      <Choice value="0"/>
    </Choices>
  </Repeater>
  <TextArea name="comment" toName="question" placeholder="comment" maxSubmissions="1"/>
</View>
"""


def tasks(
    rows: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Sequence[int]],
    *,
    set_name: str,
    round_: int,
    said: Mapping[str, Mapping[int, str]],
) -> list[dict[str, Any]]:
    """One task a solution, its pictures inside."""
    found = []
    for row in rows:
        key, steps = row["solution_id"], row["steps"]
        of_step = [{"step": i, "text": _step(i, steps[i], said.get(key, {}).get(i))} for i in asked[key]]
        data = {
            "set": set_name,
            "round": round_,
            "solution_id": key,
            "question": row["question"],
            "solution": "\n\n".join(_step(i, text, None) for i, text in enumerate(steps)),
            "images": [{"url": url} for url in picture_urls(row_images(row))],
            "asked": of_step,
        }
        found.append({"data": data})
    return found


def _step(i: int, text: str, said: str | None) -> str:
    return f"{i + 1}. {text}" + (f"\n(said before: {said})" if said else "")


def is_export(content: Any) -> bool:
    """Whether this is a JSON export: a list of tasks with annotations."""
    return isinstance(content, list) and bool(content) and all(isinstance(t, dict) and "data" in t for t in content)


def as_answers(content: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An export in the layout of the page's own files, one for each annotator, round and set. Cancelled ones are left out.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    files: dict[tuple[str, str, int], dict[str, Any]] = {}
    for task in content:
        data = task["data"]
        annotations = task.get("annotations", [])
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise ValueError("a task without data or annotations")
        for one in annotations:
            if not isinstance(one, dict) or one.get("was_cancelled"):
                continue
            who = _name(one.get("completed_by"))
            key = (who, str(data.get("set")), data.get("round", 1))
            held = files.setdefault(key, {"set": key[1], "round": key[2], "annotator": who, "answers": []})
            held["answers"].append(_answer(data, one.get("result")))
    if not files:
        raise ValueError("no task has an annotation")
    return list(files.values())


def _name(who: Any) -> str:
    """The annotator as the export names them: by e-mail address, or by number."""
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return "" if who is None else str(who) if "@" in str(who) else f"annotator {who}"


def _answer(data: Mapping[str, Any], result: Any) -> dict[str, Any]:
    asked = data.get("asked")
    if not isinstance(asked, list) or not isinstance(result, list):
        raise ValueError(f"the task of solution {data.get('solution_id')!r:.60} has lost its fields asked or result")
    marks: dict[int, Any] = {}
    comment = ""
    for one in result:
        name = str(one.get("from_name", "")) if isinstance(one, dict) else ""
        value = one.get("value") if isinstance(one, dict) else None
        if name == "comment" and isinstance(value, dict):
            text = value.get("text")
            comment = "\n".join(map(str, text)) if isinstance(text, list) else str(text or "")
        elif (found := re.fullmatch(r"mark_(\d+)", name)) and isinstance(value, dict):
            place, choices = int(found[1]), value.get("choices")
            if place >= len(asked) or not isinstance(choices, list) or len(choices) != 1:
                raise ValueError(f"field {name} of solution {data.get('solution_id')!r:.60} is {value!r:.60}")
            marks[asked[place]["step"]] = choices[0]
    return {"solution": data.get("solution_id"), "marks": marks, "comment": comment}
