"use strict";
(() => {
  const words = (cell) => cell.textContent.trim();

  // What a cell is sorted by: a number in a column of numbers, else its words; unknown ones are last.
  const key = (cell, numeric) => {
    if (!numeric) return words(cell).toLowerCase();
    const value = parseFloat((cell.dataset.v ?? words(cell)).replaceAll(",", ""));
    return Number.isNaN(value) ? null : value;
  };

  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const given = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const numeric = head.classList.contains("n");
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      // Numbers begin with the largest; the third press gives the order of the model back.
      const turns = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      button.addEventListener("click", () => {
        const turn = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", turn);
        let rows = given;
        if (turn !== "none") {
          const sign = turn === "ascending" ? 1 : -1;
          rows = given
            .map((row) => [key(row.cells[column], numeric), row])
            .sort(([a], [b]) => (a === null || b === null ? compare(a, b) : sign * compare(a, b)))
            .map(([, row]) => row);
        }
        body.append(...rows);
      });
    });
  };

  const searchable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const what = table.dataset.search;
    const told = document.createElement("output");
    const field = document.createElement("input");
    const label = document.createElement("label");
    const bar = document.createElement("div");
    field.type = "search";
    field.id = `${table.id}-search`;
    field.autocomplete = "off";
    field.spellcheck = false;
    field.setAttribute("aria-controls", table.id);
    label.htmlFor = told.htmlFor.value = field.id;
    label.textContent = `Search ${what}`;
    bar.className = "tools";
    bar.append(label, field, told);
    table.closest(".scroll").before(bar);
    let texts = null;
    const show = () => {
      texts ??= rows.map((row) => [...row.cells].map(words).join("\n").toLowerCase());
      const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      rows.forEach((row, k) => {
        row.hidden = !wanted.every((word) => texts[k].includes(word));
        found += !row.hidden;
      });
      told.textContent = `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    };
    told.textContent = `${rows.length.toLocaleString("en")} ${what}`;
    field.addEventListener("input", show);
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !field.value) return;
      event.preventDefault();
      field.value = "";
      show();
    });
  };

  for (const table of document.querySelectorAll("table[data-sort]")) {
    sortable(table);
    if (table.dataset.search) searchable(table);
  }
})();
