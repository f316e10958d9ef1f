import * as ort from "./ort.wasm.min.mjs";
import { segment } from "./segment.js";

ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;

const OPACITY = 0.6;
const element = (id) => document.getElementById(id);
const say = (text) => (element("status").textContent = text);
const read = async (name) => (await fetch(name)).json();

const [settings, colours, session] = await Promise.all([
  read("preprocessing.json"),
  read("colours.json"),
  ort.InferenceSession.create("model.onnx"),
]).catch((error) => {
  say(`The model cannot be loaded: ${error.message}`);
  throw error;
});
say("Choose a picture.");
element("picture").disabled = false;

element("picture").addEventListener("change", async ({ target }) => {
  const file = target.files[0];
  if (!file) return;
  try {
    say("Segmenting…");
    target.disabled = true;
    await show(await pixelsOf(file));
  } catch (error) {
    say(`${file.name} cannot be segmented: ${error.message}`);
  } finally {
    target.disabled = false;
  }
});

element("picture").addEventListener("click", ({ target }) => (target.value = "")); // so that the same file can be chosen again

async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

async function show(pixels) {
  const started = performance.now();
  const labels = await segment(ort, session, settings, pixels);
  const counts = new Array(settings.labels.length).fill(0);
  const painted = new ImageData(pixels.width, pixels.height);
  labels.forEach((id, pixel) => {
    counts[id]++;
    for (let channel = 0; channel < 3; channel++)
      painted.data[4 * pixel + channel] = (1 - OPACITY) * pixels.data[4 * pixel + channel] + OPACITY * colours[id][channel];
    painted.data[4 * pixel + 3] = 255;
  });
  const overlay = Object.assign(element("overlay"), { width: pixels.width, height: pixels.height, labels });
  overlay.getContext("2d").putImageData(painted, 0, 0);
  const present = counts.map((count, id) => [count, id]).filter(([count]) => count);
  present.sort((a, b) => b[0] - a[0]);
  element("legend").replaceChildren(...present.map(([count, id]) => entry(id, count / labels.length)));
  const names = present.map(([, id]) => settings.labels[id]).join(", ");
  overlay.setAttribute("aria-label", `The picture with its classes in colours: ${names}`);
  say(`Done in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
}

function entry(id, share) {
  const row = document.createElement("li"), colour = document.createElement("span");
  colour.style.background = `rgb(${colours[id].join(" ")})`;
  row.append(colour, `${settings.labels[id]} ${(100 * share).toFixed(1)} %`);
  return row;
}
