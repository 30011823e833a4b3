// Numbers as colours on small canvases: one pixel a number, enlarged by the style sheet.

// `colour(i)` gives [red, green, blue, opacity], each 0 to 255, of pixel i.
export function paint(canvas, height, width, colour) {
  if (canvas.height !== height || canvas.width !== width) [canvas.height, canvas.width] = [height, width];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) pixels.data.set(colour(i), 4 * i);
  context.putImageData(pixels, 0, 0);
}

// An image in [-1, 1], channels last, grey or in colours; `divisor` brings noise into that range.
export function paintImage(canvas, image, [height, width], divisor = 1) {
  const colours = image.length / height / width;
  const level = (value) => Math.round(Math.min(Math.max((value / divisor + 1) * 127.5, 0), 255));
  paint(canvas, height, width, (i) => {
    const [red, green = red, blue = red] = image.subarray(i * colours, (i + 1) * colours);
    return [level(red), level(green), level(blue), 255];
  });
}

const HEAT = ["440154", "414487", "2a788e", "22a884", "7ad151", "fde725"].map(fromHex);
const SIGNED = ["2166ac", "92c5de", "f7f7f7", "f4a582", "b2182b"].map(fromHex);

// 0 to 1 -> dark violet over green to yellow.
export function heat(share) {
  return between(HEAT, share);
}

// -1 to 1 -> blue over white to red.
export function signed(value) {
  return between(SIGNED, (value + 1) / 2);
}

function between(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return [...stops[low].map((value, i) => Math.round(value + (at - low) * (stops[low + 1][i] - value))), 255];
}

function fromHex(text) {
  return [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16));
}
