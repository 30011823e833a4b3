// The model as it is stored in the page.
import { Network } from "./network.js";
import { decodeBase64, halfToFloat } from "./tensor.js";

// card: what the library wrote beside the tensors; weights and noise: base64, float16 and float32.
export function readModel(card, weights, noise) {
  const numbers = halfToFloat(decodeBase64(weights));
  const tensors = new Map();
  let start = 0;
  for (const [name, shape] of card.tensors) {
    const length = shape.reduce((a, b) => a * b, 1);
    tensors.set(name, { data: numbers.subarray(start, start + length), shape });
    start += length;
  }
  const draws = new Float32Array(decodeBase64(noise).buffer);
  const size = draws.length / card.seeds / (card.maxSteps + 1);
  return {
    ...card,
    network: new Network(card.network, tensors),
    // The k-th draw of standard normal noise of a seed: the library's own numbers.
    noise: (seed, k) => {
      const first = (seed * (card.maxSteps + 1) + k) * size;
      return draws.subarray(first, first + size);
    },
  };
}
