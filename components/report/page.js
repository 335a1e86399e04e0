"use strict";
// The gallery's filters and its "show more". The page reads the same without them, only longer.
(() => {
  const byId = (id) => document.getElementById(id);
  const filters = byId("filters");
  if (!filters) return;
  const PAGE = 12;
  const cards = [...document.querySelectorAll(".card")];
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
      && wanted.every((word) => words.get(card).includes(word));
    const found = cards.filter(fits);
    const shown = new Set(found.slice(0, limit));
    for (const card of cards) card.hidden = !shown.has(card);
    byId("shown").textContent = `${shown.size} of ${found.length} shown`;
    byId("more").hidden = shown.size === found.length;
  };
  const showFromStart = () => { limit = PAGE; show(); };
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
  for (const id of ["split", "source"]) byId(id).addEventListener("change", showFromStart);
  byId("search").addEventListener("input", showFromStart);
  byId("more").addEventListener("click", () => { limit += 2 * PAGE; show(); });
  addEventListener("hashchange", showLinked);
  filters.hidden = false;
  show();
  showLinked();
})();
