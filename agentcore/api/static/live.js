// Keeps the table of operations up to date; the server renders it.
"use strict";
const table = document.getElementById("operations");
const state = document.getElementById("live-state");
const source = new EventSource(table.dataset.live);

source.addEventListener("open", () => { state.textContent = "Live."; });
source.addEventListener("operations", (event) => {
  // A reader's place in a table that scrolls must survive its replacement.
  const inside = table.contains(document.activeElement);
  const left = table.firstElementChild ? table.firstElementChild.scrollLeft : 0;
  table.innerHTML = JSON.parse(event.data);
  if (table.firstElementChild) {
    table.firstElementChild.scrollLeft = left;
    if (inside) table.firstElementChild.focus();
  }
});
source.addEventListener("error", () => {
  state.textContent = source.readyState === EventSource.CLOSED
    ? "Not live: reload the page." : "The connection was lost: trying again …";
});
