"use strict";
// Draws each cloud on a canvas over its picture and turns all clouds of a group together: drag, or arrow keys.
const clouds = JSON.parse(document.getElementById("clouds").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const START = { azimuth: 35, elevation: 22 };
const groups = new Map();

function unpack(cloud) {
  const places = new DataView(bytes(cloud.p).buffer), xyz = new Float32Array(3 * cloud.n);
  for (let i = 0; i < xyz.length; i++) xyz[i] = (places.getUint16(2 * i, true) / 65535 * 2 - 1) * cloud.span;
  return { n: cloud.n, size: cloud.size, xyz, colours: bytes(cloud.c), sizes: bytes(cloud.s) };
}

function draw(canvas, cloud, view) {
  const dots = Math.max(1, window.devicePixelRatio || 1), side = Math.round(canvas.clientWidth * dots);
  if (!side) return;
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d"), turn = view.azimuth * Math.PI / 180, tilt = view.elevation * Math.PI / 180;
  const [ct, st, ce, se] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
  const order = new Uint32Array(cloud.n), depth = new Float32Array(cloud.n), at = new Float32Array(2 * cloud.n);
  for (let i = 0; i < cloud.n; i++) {
    const [x, y, z] = [cloud.xyz[3 * i], cloud.xyz[3 * i + 1], cloud.xyz[3 * i + 2]];
    const right = ct * x + st * y, away = -st * x + ct * y;
    at[2 * i] = side / 2 + right * side * 0.49;
    at[2 * i + 1] = side / 2 - (ce * z + se * away) * side * 0.49;
    depth[i] = ce * away - se * z;
    order[i] = i;
  }
  order.sort((a, b) => depth[b] - depth[a]);  // far to near
  for (const i of order) {
    const light = 0.92 - 0.28 * Math.max(-1, Math.min(1, depth[i]));
    const shade = (k) => Math.min(255, Math.round(cloud.colours[3 * i + k] * light));
    pen.fillStyle = `rgb(${shade(0)},${shade(1)},${shade(2)})`;
    pen.beginPath();
    pen.arc(at[2 * i], at[2 * i + 1], cloud.size * side * cloud.sizes[i] / 32, 0, 7);
    pen.fill();
  }
}

function install(figure) {
  const frame = figure.querySelector(".frame"), picture = frame.querySelector("img");
  const name = figure.closest("[data-group]")?.dataset.group ?? "page";
  if (!groups.has(name)) groups.set(name, { view: { ...START }, members: [], waiting: false });
  const group = groups.get(name), canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${picture.alt}; arrow keys turn it`);
  const member = { canvas, cloud: unpack(clouds[Number(figure.dataset.cloud)]) };
  group.members.push(member);
  frame.append(canvas);
  draw(canvas, member.cloud, group.view);
  picture.style.visibility = "hidden";
  const turn = (right, down) => {
    group.view.azimuth -= right;
    group.view.elevation = Math.max(-90, Math.min(90, group.view.elevation + down));
    if (group.waiting) return;
    group.waiting = true;
    requestAnimationFrame(() => {
      group.waiting = false;
      for (const one of group.members) draw(one.canvas, one.cloud, group.view);
    });
  };
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) turn(event.movementX * 0.6, event.movementY * 0.6);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] }[event.key];
    if (step) { turn(...step); event.preventDefault(); }
  });
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); install(entry.target); }
}, { rootMargin: "300px" });
for (const figure of document.querySelectorAll("figure[data-cloud]")) seen.observe(figure);
