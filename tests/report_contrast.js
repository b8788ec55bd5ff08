// The least contrast (WCAG 2.1, relative luminance) of texts, and of lines, with what is behind them.
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (color) => {
    const [r, g, b] = rgb(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const back = getComputedStyle(e).backgroundColor;
      if (rgb(back)[3] === 255) return back;
    }
    return "white";
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const selector = "p, a, dt, dd, th, td, h2, button, figcaption div, .tag, .verdict, .status, pre, summary, label";
  const texts = [...document.querySelectorAll(selector)]
    .filter((e) => e.offsetParent && e.textContent.trim())
    .map((e) => [ratio(getComputedStyle(e).color, behind(e)), `${e.tagName} ${e.className}`]);
  const charts = [...document.querySelectorAll("#panels .plot text")];
  texts.push(...charts.map((e) => [ratio(getComputedStyle(e).fill, css("--panel")), "chart text"]));
  return {
    text: texts.sort((a, b) => a[0] - b[0])[0],
    charts: charts.length,
    line: Math.min(...[0, 1, 2, 3, 4, 5].map((i) => ratio(css(`--c${i}`), css("--panel")))),
    back: rgb(getComputedStyle(document.body).backgroundColor)[0],
  };
}
