// The settings: access, system prompt, sampling; and the menus of tools and thinking below the question.

import { $, h, placeMenu } from "./dom.js";
import { known, number, t } from "./i18n.js";

/** Name in a request, smallest, largest and step; nothing entered leaves the choice to the server. */
const SAMPLING = [
  { name: "temperature", min: 0, max: 2, step: 0.05 },
  { name: "top_p", min: 0.05, max: 1, step: 0.05 },
  { name: "top_k", min: 0, max: 1_000_000, step: 1 },
  { name: "min_p", min: 0, max: 1, step: 0.01 },
  { name: "max_tokens", min: 1, max: 131072, step: 1 },
  { name: "seed", min: 0, max: 2 ** 31 - 1, step: 1 },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.05 },
  { name: "presence_penalty", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", min: -2, max: 2, step: 0.1 },
];

/** Draw the form. `defaults` are the model's, `access` is `{key, asked}`; `changed(patch)` for settings, `keyed(key)` for the API key. */
export function drawSettings(settings, defaults, access, changed, keyed) {
  const system = h("textarea", { id: "system", rows: 4, value: settings.system });
  system.addEventListener("change", () => changed({ system: system.value.trim() }));
  const key = h("input", { id: "key", type: "password", value: access.key, autocomplete: "off", spellcheck: false });
  key.addEventListener("change", () => keyed(key.value.trim()));
  const probabilities = h("input", { id: "probabilities", type: "checkbox", checked: settings.probabilities });
  probabilities.addEventListener("change", () => changed({ probabilities: probabilities.checked }));
  const numbers = SAMPLING.map((field) => numberField(field, settings, defaults, changed));
  const reset = h("button.plain", { type: "button", onclick: () => {
    changed({ sampling: {} });
    drawSettings(settings, defaults, access, changed, keyed);
    $(SAMPLING[0].name).focus();
  } }, t("resetSampling"));
  $("settings-form").replaceChildren(
    access.asked || access.key ? field("key", key, t("keyHelp")) : "",
    field("system", system, t("systemHelp")),
    h("fieldset", {}, h("legend", {}, t("sampling")), h("div.grid", {}, ...numbers), reset),
    h("label.check", {}, probabilities, h("span", {}, t("probabilities"), h("small", {}, t("probabilitiesHelp")))),
  );
}

function field(name, control, help) {
  control.setAttribute("aria-describedby", `${name}-help`);
  return h("div.field", {}, h("label", { htmlFor: name }, t(name)), control, h("small", { id: `${name}-help` }, help));
}

function numberField({ name, min, max, step }, settings, defaults, changed) {
  const placeholder = name === "seed" ? t("random") : String(defaults[name] ?? "");
  const input = h("input", { id: name, type: "number", inputMode: "decimal", min, max, step, placeholder });
  input.value = settings.sampling[name] ?? "";
  const help = h("small", { id: `${name}-help` }, t(`${name}Help`));
  input.addEventListener("change", () => {
    // Steps are for the arrow keys; any value within the range may be typed, a whole one where steps are whole.
    const { badInput, rangeOverflow, rangeUnderflow, stepMismatch } = input.validity;
    const wrong = badInput || rangeOverflow || rangeUnderflow || (stepMismatch && Number.isInteger(step));
    input.setAttribute("aria-invalid", String(wrong));
    help.textContent = wrong ? t("outOfRange", { min: number(min, 2), max: number(max) }) : t(`${name}Help`);
    if (wrong) return;
    const { [name]: _, ...rest } = settings.sampling;
    settings.sampling = input.value === "" ? rest : { ...rest, [name]: Number(input.value) };
    changed({ sampling: settings.sampling });
  });
  input.setAttribute("aria-describedby", help.id);
  return h("div.field", {}, h("label", { htmlFor: name }, t(name)), input, help);
}

export function drawThinking(settings, able, changed) {
  const select = $("thinking");
  select.parentElement.hidden = !able;
  select.replaceChildren(...["auto", "on", "off"].map((value) => new Option(t(`thinking_${value}`), value, false, value === settings.thinking)));
  select.onchange = () => changed({ thinking: select.value });
}

/** The choice of tools. Those chosen are offered to the model with every question; the server runs them. */
export function drawTools(settings, tools, able, changed) {
  const names = tools.map((tool) => tool.function.name);
  const chosen = new Set(settings.tools.filter((name) => names.includes(name)));
  $("tools-button").hidden = !able || !tools.length;
  const label = chosen.size ? t("toolsChosen", { count: chosen.size }) : t("toolsNone");
  $("tools-count").textContent = label;
  $("tools-button").classList.toggle("active", chosen.size > 0);
  const choose = (wanted) => changed({ tools: names.filter((name) => wanted.has(name)) });
  const rows = tools.map(({ function: { name, description } }) => {
    const box = h("input", { type: "checkbox", id: `tool-${name}`, checked: chosen.has(name) });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(name);
      else chosen.delete(name);
      choose(chosen);
    });
    const own = known(`tool_${name}`);
    return h("label.check", {}, box, h("span", {}, h("code", {}, name), h("small", { lang: own ? null : "en" }, own ?? description)));
  });
  const all = h("button.plain", { type: "button", onclick: () => {
    choose(new Set(chosen.size === names.length ? [] : names));
    $("tools-menu").querySelector("button").focus();
  } }, t(chosen.size === names.length ? "chooseNone" : "chooseAll"));
  // Drawn anew only when the set of boxes is another one or all were switched, so that a box keeps the focus.
  const menu = $("tools-menu");
  const focused = document.activeElement?.id;
  menu.onbeforetoggle = () => placeMenu(menu, $("tools-button"), Math.min(368, innerWidth - 24));
  menu.replaceChildren(h("div.row", {}, h("strong", {}, t("tools")), all), h("p.soft", {}, t("toolsHelp")), ...rows);
  if (focused?.startsWith("tool-")) $(focused)?.focus();
}
