// Markdown to elements. What a model writes is never executed: HTML in it is shown as text (first wall), the result
// passes DOMPurify with a short list of tags (second), and the content security policy forbids foreign scripts (third).

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.mjs";
import { h, icon } from "./dom.js";
import { t } from "./i18n.js";

const TAGS = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" ");
/** What DOMPurify lets through. */
export const POLICY = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "align", "start", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    // An image would be a request to wherever the model says.
    image: ({ href, text }) => escape(`![${text}](${href})`),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/** Show markdown in `element`, one child a block. Blocks that did not change keep their elements, so that a long answer
 * streams without being built again, and a selection in it stays. */
export function showMarkdown(element, text) {
  const tokens = marked.lexer(text);
  const blocks = tokens.filter(({ type }) => type !== "space" && type !== "def");
  blocks.forEach((block, index) => {
    const old = element.children[index];
    if (old?.source === block.raw) return;
    const html = marked.parser(Object.assign([block], { links: tokens.links }));
    const made = h("div.block", { lang: "" }, DOMPurify.sanitize(html, POLICY));
    made.source = block.raw;
    made.querySelectorAll("pre").forEach(frameCode);
    made.querySelectorAll("table").forEach(frameTable);
    if (old) old.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastChild.remove();
}

/** A head with the language and a copy button above a block of code. */
function frameCode(pre) {
  const code = pre.querySelector("code");
  const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
  const copy = h("button.quiet", { type: "button", onclick: () => copyText(pre.textContent, copy) }, icon("copy"), t("copy"));
  const frame = h("div.code", {}, h("div.code-head", {}, h("span", {}, language), copy));
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  frame.append(pre);
}

/** Wide tables scroll in themselves, not the page. */
function frameTable(table) {
  const frame = h("div.table", { tabIndex: 0 });
  table.replaceWith(frame);
  frame.append(table);
}

/** Copy, and say so on the button for a moment. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without HTTPS, other hosts than this machine get no clipboard: the older way.
    const area = h("textarea.hidden", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const shown = button.querySelector("svg");
  if (!shown) return;
  const done = icon("check");
  shown.replaceWith(done);
  setTimeout(() => done.replaceWith(shown), 1200);
}
