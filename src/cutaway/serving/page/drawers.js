// The two side panels: beside the conversation on a wide window, over it on a narrow one; and short messages.

import { $, h } from "./dom.js";

const narrow = matchMedia("(max-width: 800px)");
const middling = matchMedia("(max-width: 1100px)");

export function makeDrawers() {
  let opener = null;
  const over = (id) => (id === "sidebar" ? narrow.matches : middling.matches);

  function open(id, focus) {
    opener = document.activeElement;
    for (const other of ["sidebar", "settings"]) if (other !== id && over(other)) close(other, false);
    set(id, true);
    const target = focus ? $(focus) : $(id).querySelector("button");
    target?.focus();
  }

  function close(id, back = true) {
    set(id, false);
    if (back) (opener?.isConnected ? opener : $(`${id}-open`)).focus();
  }

  function set(id, shown) {
    if (id === "settings") $(id).hidden = !shown;
    else $(id).classList.toggle("shown", shown);
    $(`${id}-open`).setAttribute("aria-expanded", String(shown));
    cover();
  }

  const isShown = (id) => (id === "settings" ? !$(id).hidden : $(id).classList.contains("shown"));

  /** What lies under an open panel takes neither clicks nor focus. */
  function cover() {
    const covering = ["sidebar", "settings"].find((id) => over(id) && isShown(id));
    $("backdrop").hidden = !covering;
    $("main").inert = Boolean(covering);
    $("sidebar").inert = narrow.matches ? covering !== "sidebar" : covering === "settings";
  }

  for (const id of ["sidebar", "settings"]) {
    $(`${id}-open`).addEventListener("click", () => (isShown(id) ? close(id) : open(id)));
    $(`${id}-close`).addEventListener("click", () => close(id));
    $(id).addEventListener("keydown", (event) => {
      const within = event.target.closest("[popover]:popover-open");
      if (event.key === "Escape" && !event.isComposing && !within && (id === "settings" || over(id))) close(id);
    });
  }
  $("backdrop").addEventListener("click", () => close(["sidebar", "settings"].find((id) => over(id) && isShown(id))));
  for (const query of [narrow, middling]) query.addEventListener("change", cover);
  cover();
  return { open, closeNarrow: () => narrow.matches && isShown("sidebar") && close("sidebar", false) };
}

/** `toast(text, {text, run})`: a message that goes away, with one thing to do about it. */
export function makeToast() {
  let timer = 0;
  return (text, action = null) => {
    clearTimeout(timer);
    const hide = () => $("toast").replaceChildren();
    const button = action && h("button.plain", { type: "button", onclick: () => {
      hide();
      action.run();
    } }, action.text);
    $("toast").replaceChildren(h("div.message", {}, h("span", {}, text), ...(button ? [button] : [])));
    timer = setTimeout(hide, 8000);
  };
}
