// Before the first paint: the theme that this reader chose last time.
try {
  const chosen = localStorage.getItem("refusalscope-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  // A page opened from disk may have no storage; the system's theme then holds.
}
