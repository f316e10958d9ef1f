// What happens to a picture before the graph and to its scores after, as Pillow does it, so that labels equal those of
// `segment.py` and of the package.

const FILTERS = {
  2: { support: 1, weight: (x) => Math.max(0, 1 - x) },
  3: { support: 2, weight: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0) },
}; // Pillow's numbers: 2 bilinear, 3 bicubic
const PRECISION = 2 ** 22; // Pillow resizes bytes with weights in this unit

/** Side lengths `[height, width]` of what the model sees, and of the patch grid around it. */
export function inputSizes(width, height, settings) {
  const [short, long] = width < height ? [width, height] : [height, width];
  let sides = [settings.shortest_edge, Math.floor((settings.shortest_edge * long) / short)];
  if (settings.longest_edge && sides[1] > settings.longest_edge)
    sides = [Math.floor((settings.longest_edge * short) / long), settings.longest_edge];
  sides = (width > height ? sides : sides.reverse()).map((side) => Math.max(side, 1));
  const grid = sides.map((side) => Math.ceil(side / settings.size_divisor) * settings.size_divisor);
  return { size: settings.pad ? sides : grid, grid };
}

/** First index and normalised weights of every output position; `from` to `to` is the part of the input that is shown. */
function kernel(length, from, to, newLength, { support, weight }, isBytes) {
  const scale = (to - from) / newLength, stretch = Math.max(scale, 1), reach = support * stretch;
  return Array.from({ length: newLength }, (_, index) => {
    const center = from + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(length, Math.trunc(center + reach + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) weights.push(weight(Math.abs((x - center + 0.5) / stretch)));
    const sum = weights.reduce((a, b) => a + b, 0);
    const units = weights.map((w) => (isBytes ? Math.trunc((w / sum) * PRECISION + (w < 0 ? -0.5 : 0.5)) : w / sum));
    return { first, weights: units };
  });
}

/** Resizes one channel, `values[y * width + x]`, along x and then along y; bytes are rounded in between, as Pillow does. */
export function resize(values, [height, width], [newHeight, newWidth], filter, isBytes, shown = [height, width]) {
  const Values = isBytes ? Uint8ClampedArray : Float32Array;
  const finish = isBytes ? (sum) => Math.floor((sum + PRECISION / 2) / PRECISION) : (sum) => sum;
  const columns = kernel(width, 0, shown[1], newWidth, FILTERS[filter], isBytes);
  const narrow = new Values(height * newWidth);
  for (let y = 0; y < height; y++)
    columns.forEach(({ first, weights }, x) => {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += values[y * width + first + k] * weights[k];
      narrow[y * newWidth + x] = finish(sum);
    });
  const resized = new Values(newHeight * newWidth);
  kernel(height, 0, shown[0], newHeight, FILTERS[filter], isBytes).forEach(({ first, weights }, y) => {
    for (let x = 0; x < newWidth; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += narrow[(first + k) * newWidth + x] * weights[k];
      resized[y * newWidth + x] = finish(sum);
    }
  });
  return resized;
}

/** RGBA `ImageData` -> normalised `(3, height, width)`, padded with zeros to the patch grid. */
export function pixelValues({ data, width, height }, settings) {
  const { size, grid } = inputSizes(width, height, settings);
  const values = new Float32Array(3 * grid[0] * grid[1]);
  for (let channel = 0; channel < 3; channel++) {
    const bytes = Uint8ClampedArray.from({ length: width * height }, (_, pixel) => data[4 * pixel + channel]);
    const resized = resize(bytes, [height, width], size, settings.resample, true);
    for (let y = 0; y < size[0]; y++)
      for (let x = 0; x < size[1]; x++)
        values[(channel * grid[0] + y) * grid[1] + x] =
          (resized[y * size[1] + x] / 255 - settings.image_mean[channel]) / settings.image_std[channel];
  }
  return { values, size, grid };
}

/** Class id of every pixel of `ImageData`, row by row. `ort` is onnxruntime-web, `session` holds the graph. */
export async function segment(ort, session, settings, imageData) {
  const { values, size, grid } = pixelValues(imageData, settings);
  const input = new ort.Tensor("float32", values, [1, 3, ...grid]);
  const { logits } = await session.run({ pixel_values: input });
  const [classes, rows, columns] = logits.dims.slice(1);
  const shown = [(rows * size[0]) / grid[0], (columns * size[1]) / grid[1]]; // without the padding
  const target = [imageData.height, imageData.width];
  const labels = new Uint16Array(target[0] * target[1]);
  let best;
  for (let id = 0; id < classes; id++) {
    const scores = resize(logits.data.subarray(id * rows * columns, (id + 1) * rows * columns), [rows, columns], target, 2, false, shown);
    if (!best) best = scores;
    else for (let i = 0; i < scores.length; i++) if (scores[i] > best[i]) [best[i], labels[i]] = [scores[i], id];
  }
  return labels;
}
