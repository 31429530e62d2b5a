"use strict";

// Tables: a header sorts by its column, up, down, and back to the order they came in. What has no value stays last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
  const key = (row, at) => {
    const cell = row.cells[at];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const numbers = rows.some(row => typeof key(row, at) === "number");
    const lacks = row => key(row, at) === "–" || (numbers && typeof key(row, at) !== "number");
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")] ?? null;
      const order = head.hasAttribute("aria-sort") ? next : "ascending";
      heads.forEach(each => each.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      const way = order === "descending" ? -1 : 1;
      const sorted = (one, other) => lacks(one) - lacks(other) || way * compare(key(one, at), key(other, at));
      body.append(...(order ? [...rows].sort(sorted) : rows));
    });
  });
}

// Examples: hide what does not hold the words, or has another verdict.
const filter = document.querySelector(".filter");
if (filter) {
  const [words, verdict, count] = ["input", "select", "output"].map(name => filter.querySelector(name));
  const groups = [...document.querySelectorAll(".group")], examples = [...document.querySelectorAll(".example")];
  const texts = new Map(examples.map(each => [each, each.textContent.toLowerCase()]));
  const show = () => {
    const wanted = words.value.trim().toLowerCase(), active = wanted !== "" || verdict.value !== "";
    for (const each of examples) {
      each.hidden = !texts.get(each).includes(wanted) || (verdict.value !== "" && each.dataset.verdict !== verdict.value);
    }
    for (const group of groups) {
      group.hidden = [...group.querySelectorAll(".example")].every(each => each.hidden);
      const rest = group.querySelector(".rest");
      if (rest) rest.open = active;
    }
    const shown = examples.filter(each => !each.hidden).length;
    count.textContent = `${shown} of ${examples.length} examples`;
  };
  words.addEventListener("input", show);
  verdict.addEventListener("change", show);
  filter.hidden = false;
  show();
}
