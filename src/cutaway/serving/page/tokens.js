// The token view: each token coloured by how probable it was, its alternatives on hover or focus.

import { $, h } from "./dom.js";
import { percent, t } from "./i18n.js";

const LEVELS = 8;
const VISIBLE = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };

/** 0 for a certain token, LEVELS - 1 for a very unlikely one; even steps of log-probability, to one in 400. */
const level = (logprob) => Math.min(LEVELS - 1, Math.floor((-logprob / 6) * LEVELS));

/** A token's text with its spaces visible, or bytes in hexadecimal where it is a part of a character. */
function visible(token) {
  if (Array.isArray(token)) return token.map((byte) => byte.toString(16).padStart(2, "0").toUpperCase()).join(" ");
  return token.replace(/[ \n\r\t]/g, (space) => VISIBLE[space]) || "∅";
}

/** The tokens of a message as one stop of the Tab key; arrows go from token to token. */
export function tokenView(tokens) {
  const list = h("div.tokens", { role: "group", "aria-label": t("tokenView") });
  // A character may span tokens; it is shown on the one that completes it.
  const decoder = new TextDecoder();
  list.append(...tokens.flatMap((token) => tokenElement(token, decoder)));
  const first = list.querySelector(".token");
  if (first) first.tabIndex = 0;
  for (const type of ["mouseover", "focusin"]) list.addEventListener(type, ({ target }) => target.token && showTip(target));
  for (const type of ["mouseout", "focusout"]) list.addEventListener(type, hideTip);
  list.addEventListener("keydown", (event) => step(list, event));
  const mean = tokens.reduce((sum, token) => sum + token[1], 0) / Math.max(tokens.length, 1);
  return h("div.token-view", {}, legend(mean), list);
}

function tokenElement(token, decoder) {
  const [shown, logprob] = token;
  const text = decoder.decode(Array.isArray(shown) ? new Uint8Array(shown) : new TextEncoder().encode(shown), { stream: true });
  const partial = Array.isArray(shown) && !text;
  const element = h(`span.token.p${level(logprob)}${partial ? ".bytes" : ""}`, { tabIndex: -1, role: "img" });
  element.textContent = partial ? visible(shown) : text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
  element.setAttribute("aria-label", `${visible(shown)} ${percent(Math.exp(logprob))}`);
  element.token = token;
  // A line break is shown as a mark, and breaks the line, too.
  return text.includes("\n") ? [element, document.createTextNode("\n")] : [element];
}

function legend(mean) {
  const swatches = Array.from({ length: LEVELS }, (_, index) => h(`span.swatch.p${index}`));
  const scale = h("span.scale", {}, h("span", {}, percent(1)), ...swatches, h("span", {}, percent(Math.exp(-6))));
  return h("div.legend", {}, h("span", {}, t("tokenLegend")), scale, h("span", {}, t("perplexity", { value: Math.exp(-mean).toFixed(2) })));
}

function step(list, event) {
  const tokens = [...list.querySelectorAll(".token")];
  const here = tokens.indexOf(document.activeElement);
  const moves = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1 };
  if (event.key === "Escape") hideTip();
  const next = tokens[moves[event.key]];
  if (!next) return;
  event.preventDefault();
  tokens[here].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function showTip(element) {
  hideTip();
  const [shown, logprob, top = []] = element.token;
  const rows = top.map(([text, other]) => [visible(text), other, false]);
  const mine = rows.find((row) => row[0] === visible(shown));
  if (mine) mine[2] = true;
  else rows.push([visible(shown), logprob, true]);
  const tip = $("token-tip");
  tip.replaceChildren(
    h("div.tip-head", {}, h("code", {}, visible(shown)), h("span", {}, percent(Math.exp(logprob))), h("span.soft", {}, t("nats", { value: logprob.toFixed(2) }))),
    h("table", {}, h("caption.hidden", {}, t("alternatives")), h("tbody", {}, ...rows.map(tipRow))),
  );
  tip.hidden = false;
  element.setAttribute("aria-describedby", tip.id);
  place(tip, element.getBoundingClientRect());
}

function tipRow([text, logprob, chosen]) {
  const bar = h("div.bar-fill");
  bar.style.inlineSize = `${Math.max(Math.exp(logprob) * 100, 0.5)}%`;
  return h(chosen ? "tr.chosen" : "tr", {}, h("td", {}, h("code", {}, text)), h("td.bar-cell", {}, bar), h("td.number", {}, percent(Math.exp(logprob))));
}

/** Below the token, or above where there is no room; inside the window. */
function place(tip, box) {
  const left = Math.min(Math.max(box.left, 8), innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6;
  const top = below + tip.offsetHeight > innerHeight - 8 ? box.top - tip.offsetHeight - 6 : below;
  Object.assign(tip.style, { left: `${left}px`, top: `${Math.max(top, 8)}px` });
}

export function hideTip() {
  $("token-tip").hidden = true;
  document.querySelector('[aria-describedby="token-tip"]')?.removeAttribute("aria-describedby");
}
