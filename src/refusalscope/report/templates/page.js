// Draws the figures and shows them in the reader's theme.
(() => {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const lightToDark = new Map(Object.entries(read("palette")));
  const plots = [...document.querySelectorAll(".plot")];
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["zoom2d", "resetScale2d", "toImage"]],
  };

  function read(id) {
    return JSON.parse(document.getElementById(id).textContent);
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  }

  function recoloured(value) {
    if (typeof value === "string") return lightToDark.get(value) ?? value;
    if (Array.isArray(value)) return value.map(recoloured);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recoloured(part)]));
  }

  async function draw(dark) {
    for (const plot of plots) {
      const figure = read(plot.dataset.figure);
      const shown = dark ? recoloured(figure) : figure;
      await Plotly.react(plot, shown.data, shown.layout, config);
    }
    root.dataset.drawn = dark ? "dark" : "light";
  }

  function label() {
    toggle.textContent = isDark() ? "Light theme" : "Dark theme";
  }

  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("refusalscope-theme", root.dataset.theme);
    } catch {
      // Not remembered, but shown.
    }
    label();
    draw(isDark());
  });
  system.addEventListener("change", () => {
    label();
    draw(isDark());
  });
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    draw(false);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    draw(isDark());
  });

  label();
  draw(isDark());
})();
