// Light, dark, or as the system has it.

import { $, icon } from "./dom.js";
import { t } from "./i18n.js";

const ORDER = ["system", "light", "dark"];
const ICONS = { system: "system", light: "sun", dark: "moon" };

export function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** The button shows the theme and goes on to the next one. */
export function themeSwitch(settings, changed) {
  const button = $("theme");
  const label = t("theme", { theme: t(`theme_${settings.theme}`) });
  button.replaceChildren(icon(ICONS[settings.theme]));
  button.setAttribute("aria-label", label);
  button.title = label;
  button.onclick = () => {
    const theme = ORDER[(ORDER.indexOf(settings.theme) + 1) % ORDER.length];
    changed({ theme });
    setTheme(theme);
    themeSwitch(settings, changed);
  };
}
