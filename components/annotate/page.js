"use strict";
// One solution at a time; every text of the data is set as text, never as markup. What is marked is kept in the browser
// under the annotator's name, and leaves it only as a file.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const solutions = data.solutions;
  const known = new Map(solutions.map((one) => [one.id, one]));
  const MARKS = ["+", "-", "0"];
  const KEYS = { "+": "+", "=": "+", "-": "-", "_": "-", "\u2212": "-", "0": "0" };
  const MAX_HISTORY = 2000;
  const prefix = `stepforge-audit/${data.set}/${data.round}/`;
  const fresh = () => ({ marks: {}, comments: {}, history: [], at: 0, step: null });
  let state = fresh();
  let isKept = true; // in the browser: else only the file is left

  const name = () => byId("name").value.trim();
  const say = (text) => { byId("say").textContent = text; };
  const solution = () => solutions[state.at];
  const markOf = (one, step) => (state.marks[one.id] || {})[step] || null;
  const isFilled = (one) => one.asked.every((step) => markOf(one, step));

  const keep = () => {
    if (!name()) return;
    try {
      localStorage.setItem(prefix + name(), JSON.stringify(state));
      localStorage.setItem(prefix, name());
      isKept = true;
    } catch {
      isKept = false;
      say("This browser keeps nothing: save a file before you close the page.");
    }
  };
  const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const adopt = (place = {}) => {
    state = fresh();
    try { Object.assign(state, JSON.parse(recall(prefix + name()) || "{}"), place); } catch { state = fresh(); }
    if (!solutions[state.at]) state.at = 0;
    show();
  };

  const make = (kind, text, attributes = {}) => {
    const element = document.createElement(kind);
    element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const numDone = () => solutions.reduce((sum, one) => sum + one.asked.filter((step) => markOf(one, step)).length, 0);
  const showCount = () => {
    const total = solutions.reduce((sum, one) => sum + one.asked.length, 0);
    const done = numDone();
    byId("progress").max = total;
    byId("progress").value = done;
    byId("count").textContent = `${done} of ${total} steps`;
    byId("place").textContent = `solution ${state.at + 1} of ${solutions.length}${data.round > 1 ? `, round ${data.round}` : ""}`;
    byId("previous").disabled = state.at === 0;
    byId("next").disabled = state.at === solutions.length - 1;
    byId("onward").disabled = byId("next").disabled;
    byId("undo").disabled = state.history.length === 0;
  };
  const showSteps = () => {
    const one = solution();
    const list = byId("steps");
    list.replaceChildren();
    one.steps.forEach((text, step) => {
      const isAsked = one.asked.includes(step);
      const item = make("li", "", { class: "step" });
      item.append(make("span", `${step + 1}`, { class: "number" }), make("p", text, { class: "text" }));
      if (isAsked) {
        const marks = make("div", "", { class: "marks", role: "group", "aria-label": `step ${step + 1}` });
        for (const mark of MARKS) {
          const words = { "+": "right", "-": "wrong", "0": "neither" }[mark];
          const button = make("button", mark === "-" ? "\u2212" : mark, { type: "button", "data-mark": mark, "aria-label": words, title: words });
          button.setAttribute("aria-pressed", String(markOf(one, step) === mark));
          button.addEventListener("click", () => { state.step = step; setMark(mark); });
          marks.append(button);
        }
        item.append(marks);
        if (markOf(one, step)) item.dataset.mark = markOf(one, step);
        item.addEventListener("click", (event) => { if (!event.target.closest("button")) { state.step = step; showSteps(); } });
      } else {
        item.classList.add("shown");
      }
      if (one.said[step]) item.append(make("p", `said before: ${one.said[step]}`, { class: "said" }));
      if (step === state.step) { item.classList.add("here"); item.setAttribute("aria-current", "step"); }
      list.append(item);
    });
    showCount();
  };
  const show = () => {
    const one = solution();
    if (!one) { say("Nothing is asked here."); return; }
    if (!one.asked.includes(state.step)) state.step = one.asked.find((step) => !markOf(one, step)) ?? one.asked[0];
    byId("question").textContent = one.question;
    byId("answer").textContent = one.answer || "none";
    byId("comment").value = state.comments[one.id] || "";
    byId("pictures").replaceChildren(...one.pictures.map((url, i) => {
      const picture = make("img", "", { alt: `picture ${i + 1} of ${one.pictures.length} that belongs to the question` });
      picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth <= 128));
      picture.src = url;
      return picture;
    }));
    showSteps();
  };
  const reveal = () => document.querySelector(".step.here")?.scrollIntoView({ block: "nearest" });

  const write = (id, step, mark) => {
    const marks = state.marks[id] || (state.marks[id] = {});
    if (mark) marks[step] = mark; else delete marks[step];
  };
  const setMark = (mark) => {
    if (!name()) { say("Your name first: answers without one cannot be told apart."); byId("name").focus(); return; }
    const one = solution();
    say("");
    state.history.push([one.id, state.step, markOf(one, state.step)]);
    if (state.history.length > MAX_HISTORY) state.history.shift();
    write(one.id, state.step, mark);
    state.step = one.asked.find((step) => step > state.step) ?? state.step;
    changed();
    reveal();
  };
  const undo = () => {
    const last = state.history.pop();
    if (!last || !known.has(last[0])) return;
    write(...last);
    state.at = solutions.indexOf(known.get(last[0]));
    state.step = last[1];
    changed();
    show();
    reveal();
  };
  const changed = () => { keep(); showSteps(); };
  const go = (to) => {
    if (!solutions[to]) return;
    state.at = to;
    state.step = null;
    keep();
    show();
    scrollTo(0, 0);
  };
  const move = (by) => {
    const asked = solution().asked;
    state.step = asked[Math.min(asked.length - 1, Math.max(0, asked.indexOf(state.step) + by))];
    showSteps();
    reveal();
  };

  const save = () => {
    if (!name()) { say("Your name first: answers without one cannot be told apart."); byId("name").focus(); return; }
    const answers = solutions
      .filter((one) => one.asked.some((step) => markOf(one, step)) || state.comments[one.id])
      .map((one) => ({ solution: one.id, marks: one.steps.map((_, step) => markOf(one, step)), comment: state.comments[one.id] || "" }));
    const content = { format: data.format, set: data.set, round: data.round, annotator: name(), answers };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    link.download = `answers-${name().replace(/[^\p{L}\p{N}._-]+/gu, "_")}-round${data.round}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    isKept = true;
    const left = solutions.filter((one) => !isFilled(one)).length;
    say(left ? `Saved. ${left} of ${solutions.length} solutions are not finished yet.` : "Saved: every step is marked.");
  };
  const load = async (file) => {
    let content;
    try { content = JSON.parse(await file.text()); } catch { say("That file is no JSON."); return; }
    if (!content || content.format !== data.format || content.set !== data.set || content.round !== data.round || !Array.isArray(content.answers)) {
      say("That file does not answer these questions.");
      return;
    }
    byId("name").value = String(content.annotator || "");
    state = fresh();
    for (const answer of content.answers) {
      const one = known.get(answer && answer.solution);
      if (!one || !Array.isArray(answer.marks)) continue;
      answer.marks.forEach((mark, step) => { if (MARKS.includes(mark) && one.asked.includes(step)) write(one.id, step, mark); });
      if (answer.comment) state.comments[one.id] = String(answer.comment);
    }
    const first = solutions.findIndex((one) => !isFilled(one));
    state.at = first < 0 ? 0 : first;
    say("");
    keep();
    show();
  };

  byId("name").addEventListener("change", () => {
    const before = numDone();
    adopt();
    say(before && !numDone() ? "Nothing is marked under this name: what was marked before is kept under the name before." : "");
    keep();
  });
  byId("comment").addEventListener("input", () => {
    if (!name()) { say("Your name first: answers without one cannot be told apart."); return; }
    state.comments[solution().id] = byId("comment").value;
    keep();
  });
  byId("previous").addEventListener("click", () => go(state.at - 1));
  byId("next").addEventListener("click", () => go(state.at + 1));
  byId("onward").addEventListener("click", () => go(state.at + 1));
  byId("undo").addEventListener("click", undo);
  byId("save").addEventListener("click", save);
  byId("load").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => { if (byId("file").files[0]) load(byId("file").files[0]); byId("file").value = ""; });
  addEventListener("keydown", (event) => {
    if (event.target.matches("input, textarea")) {
      if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "name")) event.target.blur();
      return;
    }
    if ((event.ctrlKey || event.metaKey) && event.key === "z") { undo(); event.preventDefault(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || !solution()) return;
    if (KEYS[event.key]) { if (!event.repeat) setMark(KEYS[event.key]); } // a key held down says nothing of the next steps
    else if (event.key === "ArrowDown") move(1);
    else if (event.key === "ArrowUp") move(-1);
    else if (event.key === "ArrowRight") go(state.at + 1);
    else if (event.key === "ArrowLeft") go(state.at - 1);
    else if (event.key === "u") undo();
    else if (event.key === "c") byId("comment").focus();
    else if (event.key === "s") save();
    else return;
    event.preventDefault();
  });
  addEventListener("storage", (event) => { // another window of the same person: what was marked there is not written over
    if (name() && event.key === prefix + name()) { const { at, step } = state; adopt({ at, step }); }
  });
  addEventListener("beforeunload", (event) => { if (!isKept) event.preventDefault(); });

  byId("name").value = recall(prefix) || "";
  adopt();
})();
