// Shows what the server says has changed. It only sets text, attributes of elements that are there, and whether they show.
"use strict";

const main = document.querySelector("[data-events]");
const connection = document.querySelector("[data-connection]");
let source = null;

function show(element, value) {
  if (element instanceof HTMLProgressElement) {
    element.value = value;
  } else if (element instanceof HTMLImageElement) {
    element.hidden = !value;
    element.onerror = () => { element.hidden = true; };  // the search has ended, and its picture is gone
    if (value && element.getAttribute("src") !== value) element.src = value;
  } else if (element.textContent !== String(value)) {
    element.textContent = value;
    if (element.dataset.value !== undefined) element.dataset.value = String(value).split(",")[0];
  }
}

function take(event) {
  for (const [name, value] of Object.entries(JSON.parse(event.data))) {
    const key = CSS.escape(name);
    document.querySelectorAll(`[data-live="${key}"]`).forEach((element) => show(element, value));
    document.querySelectorAll(`[data-show="${key}"]`).forEach((element) => { element.hidden = !value; });
    document.querySelectorAll(`[data-address="${key}"]`).forEach((element) => {
      if (String(value).startsWith("/jobs/")) element.setAttribute("href", value);
    });
    if (name === "over" && value) leave();
  }
  connection.textContent = "";
}

function leave() {
  if (source) source.close();
  source = null;
}

function join() {
  if (source || document.hidden) return;
  source = new EventSource(main.dataset.events);
  source.onmessage = take;
  source.onerror = () => { connection.textContent = "No connection to inversefed serve; this page may be out of date."; };
}

if (main) {
  join();
  // A browser opens only a few connections to a server: tabs that nobody sees hold none.
  document.addEventListener("visibilitychange", () => (document.hidden ? leave() : join()));
  window.addEventListener("pagehide", leave);
}
