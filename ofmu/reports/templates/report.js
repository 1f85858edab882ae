"use strict";
(() => {
  const root = document.documentElement;
  const documents = new Map();

  // Charts take their colours from the page's style, again whenever it changes between light, dark and print.
  const themes = (value) => ({
    axis: { axis_label_text_color: value("--soft"), major_label_text_color: value("--soft"), axis_line_color: value("--line"),
            major_tick_line_color: value("--line") },
    grid: { grid_line_color: value("--grid") },
    ink: { text_color: value("--soft") },
  });
  function paint() {
    const style = getComputedStyle(root);
    const theme = themes((name) => style.getPropertyValue(name).trim());
    for (const view of documents.values()) {
      for (const model of view.model.references()) {
        if (model.type.endsWith("Axis")) model.setv(theme.axis);
        else if (model.type === "Grid") { if (model.grid_line_color !== null) model.setv(theme.grid); }
        else if (model.name === "ink") model.setv({ text_color: theme.ink.text_color });
        else if (model.name === "ring") model.setv({ line_color: style.getPropertyValue("--card").trim() });
      }
    }
  }
  const queries = ["(prefers-color-scheme: dark)", "print"].map((query) => matchMedia(query));
  for (const query of queries) {
    query.addEventListener("change", () => {
      paint();
      // A browser prints before the next frame, so the charts are drawn at once.
      for (const view of documents.values()) view.paint();
    });
  }

  // Sources named "points" have one row per point, in the same order. A choice in one chart shows everywhere.
  const sources = () => [...documents.values()].flatMap((view) => [...view.model.references()].filter((model) => model.name === "points"));
  let busy = false;
  function pick(indices, scroll) {
    if (busy) return;
    busy = true;
    const rows = new Set(indices.map(String));
    for (const source of sources()) source.selected.indices = indices;
    for (const row of document.querySelectorAll("tr[data-point]")) {
      row.classList.toggle("picked", rows.has(row.dataset.point));
    }
    if (scroll && indices.length === 1) {
      const row = document.querySelector(`tr[data-point="${indices[0]}"]`);
      const box = row && row.closest(".scroll");
      if (box) box.scrollTop += row.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 2;
    }
    busy = false;
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.classList.contains("pick")) {
      const row = button.closest("tr");
      pick(row.classList.contains("picked") ? [] : [Number(row.dataset.point)], false);
    } else if (button.classList.contains("series")) show(button);
    else if (button.classList.contains("copy")) copy(button);
    else if (button.closest(".sortable thead")) sort(button.closest("th"));
  });
  function show(button) {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const model of documents.get(button.dataset.chart).model.references()) {
      if (model.name === button.dataset.series && "visible" in model.properties) model.visible = shown;
    }
  }
  async function copy(button) {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }

  // Tables. A cell without a value stays last in both orders.
  const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  function sort(header, direction) {
    const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
    const order = direction ?? (header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const keyed = [...body.rows].map((row) => [valueOf(row, column), row]);
    const numeric = keyed.every(([value]) => value === "" || !Number.isNaN(Number(value)));
    keyed.sort(([a], [b]) => (a === "") - (b === "") || sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true })));
    body.append(...keyed.map(([, row]) => row));
    remember(table.id, { column, order });
  }
  const tests = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };
  // Words must all occur in a row. "column < number" compares the column whose name contains the word.
  function predicate(text, table) {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim().toLowerCase());
    const checks = [];
    const rest = text.toLowerCase().replace(/([^\s<>=]+)\s*(<=|>=|<|>|=)\s*(\S+)/g, (whole, name, sign, word) => {
      const exact = heads.indexOf(name), column = exact >= 0 ? exact : heads.findIndex((head) => head.includes(name));
      if (column < 0) { checks.push(() => false); return ""; }
      const number = Number(word);
      checks.push((row) => {
        const value = valueOf(row, column);
        if (Number.isNaN(number)) return sign === "=" && value.toLowerCase() === word;
        return value !== "" && tests[sign](Number(value), number);
      });
      return "";
    });
    const words = rest.split(/\s+/).filter(Boolean);
    return (row) => checks.every((check) => check(row)) && words.every((word) => row.textContent.toLowerCase().includes(word));
  }
  function filter(input) {
    const table = document.getElementById(input.dataset.filter), rows = [...table.tBodies[0].rows];
    const wanted = predicate(input.value, table);
    for (const row of rows) row.hidden = !wanted(row);
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById(`${table.id}-count`).textContent = `${shown} of ${rows.length} rows`;
    remember(table.id, { text: input.value });
  }
  for (const input of document.querySelectorAll("[data-filter]")) {
    input.addEventListener("input", () => filter(input));
  }

  // A live page is loaded again when its run has news. What the reader sorted and filtered stays.
  const live = document.getElementById("live");
  function remember(name, change) {
    if (!live) return;
    const state = JSON.parse(sessionStorage.getItem("ofmu") ?? "{}");
    state[name] = { ...state[name], ...change };
    sessionStorage.setItem("ofmu", JSON.stringify(state));
  }
  function restore() {
    const state = live ? JSON.parse(sessionStorage.getItem("ofmu") ?? "{}") : {};
    for (const [name, { column, order, text }] of Object.entries(state)) {
      const table = document.getElementById(name), input = document.querySelector(`[data-filter="${CSS.escape(name)}"]`);
      if (table && column !== undefined && table.tHead.rows[0].cells[column]) sort(table.tHead.rows[0].cells[column], order);
      if (input && text) input.value = text;
    }
    for (const input of document.querySelectorAll("[data-filter]")) filter(input);
  }
  if (live) {
    let version = null;
    const ask = async () => {
      try {
        const answer = await (await fetch("/version")).text();
        live.textContent = "live";
        live.classList.remove("lost");
        if (version !== null && version !== answer) location.reload();
        version = answer;
      } catch {
        live.textContent = "the server has ended";
        live.classList.add("lost");
      }
    };
    ask();
    setInterval(ask, 3000);
  }

  async function start() {
    const items = JSON.parse(document.getElementById("charts").textContent);
    for (const [name, item] of Object.entries(items)) {
      await Bokeh.embed.embed_item(item);
      documents.set(name, Bokeh.index[item.root_id]);
    }
    paint();
    for (const source of sources()) {
      source.selected.properties.indices.change.connect(() => pick([...source.selected.indices], true));
    }
    restore();
    root.dataset.ready = "yes";
  }
  start();
})();
