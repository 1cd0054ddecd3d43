"use strict";
// Sorting, filtering and highlighting; and on a page that `upscale watch` serves, renewing. Without it all is shown.
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const filter = document.getElementById("filter");
  const hidden = new Set(); // paths of runs that were clicked away, which stay what they are when the page is renewed
  const sorted = {}; // by table: column and direction
  let lit;

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const away = new Set();
    for (const button of all("#runs button")) {
      const found = words.every((word) => button.dataset.words.includes(word));
      button.hidden = !found;
      button.setAttribute("aria-pressed", !hidden.has(button.dataset.path));
      if (!found || hidden.has(button.dataset.path)) away.add(button.dataset.run);
    }
    for (const one of all("main [data-run]")) one.classList.toggle("away", away.has(one.dataset.run));
    const shown = all("#runs button").length - away.size;
    document.getElementById("count").textContent = away.size ? `${shown} shown, ${away.size} hidden` : "";
  }

  function light(run) {
    if (run === lit) return;
    lit = run;
    document.body.classList.toggle("dim", run !== undefined);
    for (const one of all("[data-run]")) one.classList.toggle("lit", one.dataset.run === run);
  }

  // What a cell begins with, as a number where it is one. Names of runs begin with a sample of their line.
  function order(cell) {
    const text = (cell.firstChild ? cell.firstChild.textContent : "").trim().replaceAll(",", "");
    return { text: cell.textContent.trim(), number: Number.parseFloat(text) };
  }

  function sort(table) {
    const { column, down } = sorted[table.id];
    const rows = all("tbody > tr", table).map((row) => ({ row, ...order(row.cells[column]) }));
    const numbers = rows.some((one) => !Number.isNaN(one.number)); // what is none stands last
    rows.sort((a, b) => {
      if (!numbers) return a.text.localeCompare(b.text) * (down ? -1 : 1);
      if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number);
      return (a.number - b.number) * (down ? -1 : 1);
    });
    table.tBodies[0].append(...rows.map((one) => one.row));
    for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
    table.tHead.rows[0].cells[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  function begin() {
    for (const head of all("table.sort thead th")) head.tabIndex = 0;
    for (const table of all("table.sort")) if (sorted[table.id]) sort(table);
    show();
  }

  function act(target) {
    const button = target.closest("#runs button");
    const head = target.closest("table.sort thead th");
    const link = target.closest('a[href^="#"]');
    if (button) {
      if (!hidden.delete(button.dataset.path)) hidden.add(button.dataset.path);
      show();
    } else if (head) {
      const table = head.closest("table");
      const column = head.cellIndex;
      const again = sorted[table.id] && sorted[table.id].column === column;
      sorted[table.id] = { column, down: again && !sorted[table.id].down };
      sort(table);
    } else if (link) {
      const details = document.querySelector(link.getAttribute("href"));
      if (details) details.open = true;
    } else if (target.id === "all") {
      hidden.clear();
      filter.value = "";
      show();
    }
  }

  async function renew() {
    const state = document.body.dataset;
    const note = document.getElementById("note");
    try {
      if ((await (await fetch("/state", { cache: "no-store" })).text()) !== state.state) {
        const answer = await (await fetch("/", { cache: "no-store" })).text();
        const page = new DOMParser().parseFromString(answer, "text/html");
        const open = new Set(all("details[open]").map((one) => one.id));
        for (const query of ["h1", "#runs", "main"]) {
          document.querySelector(query).replaceWith(page.querySelector(query));
        }
        for (const one of all("details")) if (open.has(one.id)) one.open = true;
        state.state = page.body.dataset.state;
        document.title = page.title;
        begin();
      }
      note.textContent = `looked at ${new Date().toLocaleTimeString()}`;
    } catch {
      note.textContent = "upscale watch does not answer";
    }
    setTimeout(renew, 1000 * state.refresh);
  }

  document.getElementById("tools").hidden = false;
  filter.addEventListener("input", show);
  document.addEventListener("click", (event) => act(event.target));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("thead th")) act(event.target);
  });
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => light(event.target.closest("[data-run]")?.dataset.run));
  }
  begin();
  if (document.body.dataset.refresh) setTimeout(renew, 1000 * document.body.dataset.refresh);
})();
