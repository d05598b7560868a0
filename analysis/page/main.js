(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const samples = document.getElementById("samples"), chart = document.getElementById("chart");
  const browse = samples ? sampleBrowser(samples, data.browser) : null;
  if (chart) paretoChart(chart, data.chart, browse);

  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });
  for (const button of document.querySelectorAll("[data-unfold]"))
    button.addEventListener("click", () => {
      for (const one of document.getElementById(button.dataset.unfold).querySelectorAll("details")) one.open = true;
      button.hidden = true;
    });
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("main > section > details")) one.open = true; });

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) seen.observe(document.getElementById(id));
})();
