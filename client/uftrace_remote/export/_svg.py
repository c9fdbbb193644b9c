"""The style and the script inside a flame graph."""

from __future__ import annotations

STYLE = """
text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #222; }
.background { fill: #fdfcf8; }
.title { font-size: 16px; text-anchor: middle; }
.button { cursor: pointer; fill: #36c; }
#search { text-anchor: end; }
#reset { visibility: hidden; }
.frame { cursor: pointer; }
.frame text { pointer-events: none; }
.frame:hover rect { stroke: #222; stroke-width: 1; }
.faded { opacity: 0.45; }
.found rect { fill: #c6a2f0; }
"""

# Zooming scales every box to the chosen one's range; callers fill the width.
SCRIPT = """
(function () {
  "use strict";
  var svg = document.documentElement;
  var margin = Number(svg.dataset.margin), charWidth = Number(svg.dataset.char);
  var usable = svg.viewBox.baseVal.width - 2 * margin;
  var details = document.getElementById("details");
  var reset = document.getElementById("reset");
  var frames = Array.prototype.map.call(document.querySelectorAll(".frame"), function (g) {
    var rect = g.querySelector("rect");
    return {
      g: g, rect: rect, text: g.querySelector("text"), name: g.dataset.name,
      x: Number(rect.getAttribute("x")), w: Number(rect.getAttribute("width")),
      y: Number(rect.getAttribute("y"))
    };
  });
  function place(f, x, w) {
    f.rect.setAttribute("x", x);
    f.rect.setAttribute("width", w);
    f.text.setAttribute("x", x + 3);
    var room = Math.floor((w - 6) / charWidth);
    f.text.textContent = f.name.length <= room ? f.name
      : room >= 4 ? f.name.slice(0, room - 2) + ".." : "";
  }
  function zoom(to) {
    var scale = usable / to.w;
    frames.forEach(function (f) {
      var around = f.y > to.y && f.x <= to.x + 0.01 && f.x + f.w >= to.x + to.w - 0.01;
      var inside = f.y <= to.y && f.x >= to.x - 0.01 && f.x + f.w <= to.x + to.w + 0.01;
      f.g.style.display = around || inside ? "" : "none";
      f.g.classList.toggle("faded", around);
      if (around) { place(f, margin, usable); }
      else if (inside) { place(f, margin + (f.x - to.x) * scale, f.w * scale); }
    });
    reset.style.visibility = to === frames[0] ? "hidden" : "visible";
  }
  frames.forEach(function (f) {
    f.g.addEventListener("click", function () { zoom(f); });
    f.g.addEventListener("mouseover", function () {
      details.textContent = f.g.querySelector("title").textContent;
    });
    f.g.addEventListener("mouseout", function () { details.textContent = " "; });
  });
  reset.addEventListener("click", function () { zoom(frames[0]); });
  function search() {
    var wanted = window.prompt("Function name contains:");
    if (wanted === null) { return; }
    frames.forEach(function (f) {
      f.g.classList.toggle("found", wanted !== "" && f.name.indexOf(wanted) >= 0);
    });
  }
  document.getElementById("search").addEventListener("click", search);
  window.addEventListener("keydown", function (event) {
    if (event.key === "f" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      search();
    }
    if (event.key === "Escape") { zoom(frames[0]); }
  });
})();
"""
