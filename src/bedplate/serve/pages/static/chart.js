// Reading a chart: the values below the pointer, or step by step with the arrow keys.
const SIDE = 1000;
const places = new Map(); // title of a chart -> where it is being read, so that new curves do not end it

const range = (text) => text.split(" ").map(Number);
const short = (value) => (Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4))));

function curves(figure) {
  return [...figure.querySelectorAll("polyline.line, path.dots[data-name]")].map((shape) => ({
    name: shape.dataset.name,
    points: (shape.getAttribute("points") ?? shape.getAttribute("d").replaceAll("M", " ").replaceAll("h0", "").replace(/([\d.]+) ([\d.]+)/g, "$1,$2"))
      .trim().split(/\s+/).map((pair) => pair.split(",").map(Number)),
  }));
}

function nearest(points, at) {
  return points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));
}

function read(figure, at) {
  const [left, right] = range(figure.dataset.x);
  const [low, high] = range(figure.dataset.y);
  const found = curves(figure).filter((curve) => curve.points.length);
  if (!found.length) return;
  const place = nearest(found[0].points, at)[0];
  figure.querySelector(".cross").setAttribute("d", `M${place} 0v${SIDE}`);
  const values = found.map((curve) => {
    const [across, down] = nearest(curve.points, place);
    return Math.abs(across - place) > 15 ? "" : `${curve.name} ${short(low + (1 - down / SIDE) * (high - low))}`;
  });
  const step = left + (place / SIDE) * (right - left);
  figure.querySelector(".reading").textContent = `step ${Math.round(step).toLocaleString("en")}: ${values.filter(Boolean).join(", ")}`;
  places.set(figure.dataset.title, place);
}

function leave(figure) {
  figure.querySelector(".cross").setAttribute("d", "");
  figure.querySelector(".reading").textContent = "";
  places.delete(figure.dataset.title);
}

const figureOf = (event) => event.target.closest?.(".plot")?.closest("figure.chart");

document.addEventListener("pointermove", (event) => {
  const figure = figureOf(event);
  document.querySelectorAll("figure.chart").forEach((other) => { if (other !== figure && places.has(other.dataset.title) && !other.contains(document.activeElement)) leave(other); });
  if (!figure) return;
  const box = figure.querySelector(".plot").getBoundingClientRect();
  read(figure, (SIDE * (event.clientX - box.left)) / box.width);
});

document.addEventListener("keydown", (event) => {
  const figure = figureOf(event);
  const way = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!figure || way === undefined) return;
  event.preventDefault();
  const points = curves(figure)[0]?.points ?? [];
  const now = points.findIndex((point) => point[0] === places.get(figure.dataset.title));
  const next = Math.min(points.length - 1, Math.max(0, (now < 0 ? points.length : now) + way));
  if (points[next]) read(figure, points[next][0]);
  figure.querySelector(".reading").setAttribute("aria-live", "polite");
});

// New content takes the focus away for a moment; that is not the reader leaving.
let replacing = false;
document.addEventListener("replacing", () => { replacing = true; });
document.addEventListener("replaced", () => {
  replacing = false;
  document.querySelectorAll("figure.chart").forEach((figure) => { if (places.has(figure.dataset.title)) read(figure, places.get(figure.dataset.title)); });
});
document.addEventListener("focusout", (event) => { if (!replacing && figureOf(event)) leave(figureOf(event)); });
