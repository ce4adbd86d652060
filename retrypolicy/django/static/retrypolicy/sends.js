"use strict";

// The box in the table's head chooses all records of the page.
const all = document.getElementById("sends-all");
if (all) {
  all.addEventListener("change", () => {
    for (const box of document.querySelectorAll("input[name=send]")) box.checked = all.checked;
  });
}
