// The three languages of the page. Every string a user sees is in lang/*.js, one table a language.

import en from "./lang/en.js";
import hans from "./lang/zh-Hans.js";
import hant from "./lang/zh-Hant.js";
import { $, icon } from "./dom.js";

export const LANGUAGES = {
  "zh-Hant": { name: "正體中文", table: hant },
  "zh-Hans": { name: "简体中文", table: hans },
  en: { name: "English", table: en },
};

let language = "en";

/** The language of the browser, as far as the page speaks it. */
export function preferredLanguage() {
  for (const wanted of navigator.languages ?? [navigator.language]) {
    const { language: base, script } = new Intl.Locale(wanted).maximize();
    if (base === "zh" || base === "yue") return script === "Hant" ? "zh-Hant" : "zh-Hans";
    if (base === "en") return "en";
  }
  return "en";
}

/** The string of a key, with `{name}` replaced by a value. */
export function t(key, values = {}) {
  const text = LANGUAGES[language].table[key];
  if (text === undefined) throw new Error(`no string ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The string of a key that the server names, undefined where the page has none. */
export const known = (key) => LANGUAGES[language].table[key];

/** A number as the language writes it. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function percent(value) {
  const digits = value >= 0.1 ? 1 : value >= 0.001 ? 2 : 4;
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: digits }).format(value);
}

/** Switch language: the `lang` of the document, and every element that index.html marks. */
export function setLanguage(code) {
  language = code in LANGUAGES ? code : "en";
  document.documentElement.lang = language;
  translate(document);
}

/** Fill the marked elements: `data-t` is the text, `data-t-label` the name, `data-t-placeholder` the placeholder. */
function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    const text = t(element.dataset.tLabel);
    element.setAttribute("aria-label", text);
    if (element.tagName === "BUTTON") element.title = text;
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

/** Draw the icons that index.html asks for. */
export function drawIcons() {
  for (const element of document.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));
}

/** The switch of languages in the sidebar. */
export function languageSwitch(onchange) {
  const select = $("language");
  for (const [code, { name }] of Object.entries(LANGUAGES)) select.add(new Option(name, code, false, code === language));
  for (const option of select.options) option.lang = option.value;
  select.addEventListener("change", () => onchange(select.value));
}
