// Runs before the first paint, so that a chosen theme does not flash.
(() => {
  try {
    const { theme, language } = JSON.parse(localStorage.getItem("cutaway.settings") ?? "{}");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    if (typeof language === "string") document.documentElement.lang = language;
  } catch {
    // Without storage, or with a broken entry, the page follows the system.
  }
})();
