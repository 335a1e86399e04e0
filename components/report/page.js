"use strict";
// Tables that sort, and the gallery's filters, order and "show more". The page reads the same without them, only longer.
(() => {
  const byId = (id) => document.getElementById(id);
  const key = (row, i) => {
    const told = row.cells[i].dataset.value;
    return told === undefined ? null : told === "" || isNaN(told) ? told : Number(told);
  };
  const before = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of document.querySelectorAll("table.sortable")) {
    const head = [...table.tHead.rows[0].cells];
    head.forEach((cell, i) => {
      if (cell.querySelector("svg")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const isNumber = [...table.tBodies[0].rows].some((row) => typeof key(row, i) === "number");
        const now = cell.getAttribute("aria-sort");
        const down = now ? now === "ascending" : isNumber && i > 0;
        for (const other of head) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row, i), row]);
        rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? before(b, a) : before(a, b)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  const filters = byId("filters");
  if (!filters) return;
  const PAGE = 12;
  const inOrder = [...document.querySelectorAll(".card")];
  let cards = inOrder;
  const buttons = [...filters.querySelectorAll("button")];
  const words = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  for (const source of [...new Set(cards.map((card) => card.dataset.source))].sort()) {
    byId("source").append(new Option(source, source));
  }
  let kind = "all";
  let limit = PAGE;
  const show = () => {
    const wanted = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (card) => (kind === "all" || card.dataset.kind === kind)
      && (!byId("split").value || card.dataset.split === byId("split").value)
      && (!byId("source").value || card.dataset.source === byId("source").value)
      && (!byId("fault").value || card.dataset.faults.split(" ").includes(byId("fault").value))
      && wanted.every((word) => words.get(card).includes(word));
    const found = cards.filter(fits);
    const shown = new Set(found.slice(0, limit));
    for (const card of cards) card.hidden = !shown.has(card);
    byId("shown").textContent = `${shown.size} of ${found.length} shown`;
    byId("more").hidden = shown.size === found.length;
  };
  const showFromStart = () => { limit = PAGE; show(); };
  const arrange = () => {
    const way = { sure: -1, close: 1 }[byId("order").value];
    cards = way ? [...inOrder].sort((a, b) => way * (a.dataset.margin - b.dataset.margin)) : inOrder;
    inOrder[0]?.parentElement.append(...cards);
    showFromStart();
  };
  const showLinked = () => {
    const card = location.hash.startsWith("#p-") && byId(location.hash.slice(1));
    if (!card || !card.hidden) return;
    limit = cards.length;
    show();
    card.hidden = false;
    card.scrollIntoView();
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      kind = button.dataset.kind;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      showFromStart();
    });
  }
  for (const id of ["split", "source", "fault"]) byId(id).addEventListener("change", showFromStart);
  byId("order").addEventListener("change", arrange);
  byId("search").addEventListener("input", showFromStart);
  byId("more").addEventListener("click", () => { limit += 2 * PAGE; show(); });
  addEventListener("hashchange", showLinked);
  filters.hidden = false;
  show();
  showLinked();
})();
